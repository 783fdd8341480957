//! Configurations and prefixes in files.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use tempfile::TempDir;

use crate::{config::Config, record::AccessLog};

const HEAD: &str = "[dataplane]\ninterfaces = ['eth0']\n[[service]]\nname = 'web'\n";

struct Place(TempDir);

impl Place {
    fn new(keys: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("sheer.toml"), format!("{HEAD}{keys}\n")).unwrap();
        Self(dir)
    }

    fn with(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        fs::write(self.0.path().join(name), content).unwrap();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self) -> Result<Config, Vec<String>> {
        let read = Config::read(&self.path("sheer.toml"), "default".parse().unwrap());
        let dir = format!("{}/", self.0.path().display());
        read.map_err(|m| m.to_string().lines().map(|line| line.replace(&dir, "")).collect())
    }

    fn mistakes(&self) -> Vec<String> {
        self.read().unwrap_err()
    }
}

#[test]
fn lists_and_files_add_up_relative_to_the_configuration() {
    let place =
        Place::new("destination = '192.0.2.0/24'\ndestination_file = 'to.txt'\nclient_file = 'from.txt'")
            .with("to.txt", "10.0.0.0/8\r\n2001:db8::/32 # ours\n")
            .with("from.txt", "172.16.0.0/12");
    let config = place.read().unwrap();
    assert_eq!(config.services[0].destinations.as_ref().unwrap().len(), 3);
    assert_eq!(config.services[0].clients.as_ref().unwrap().len(), 1);
    assert_eq!(config.file, Some(place.path("sheer.toml")));
    assert_eq!(config.summary(), "1 service, 4 prefixes, 1 interface");
}

#[test]
fn an_access_log_is_relative_to_the_configuration_too() {
    let place = Place::new("[proxy]\naccess_log = 'access.log'");
    assert_eq!(place.read().unwrap().access_log, AccessLog::File(place.path("access.log")));
}

#[test]
fn bad_lines_are_named_by_their_own_file() {
    let place =
        Place::new("port = 0\ndestination_file = 'to.txt'\nprot = 1").with("to.txt", "10.0.0.0/8\n\n eth0\n");
    assert_eq!(
        place.mistakes(),
        [
            "sheer.toml:5:8: service \"web\".port: `0` is no port: a number from 1 to 65535, or a range such as 8000-8099",
            "to.txt:3:2: service \"web\".destination_file: `eth0` is no prefix; write an address such as 192.0.2.1 or a \
             prefix such as 2001:db8::/32",
            "sheer.toml:7:1: service \"web\".prot: `prot` is no key in a [[service]]; did you mean `port`?",
        ]
    );
}

#[test]
fn of_many_bad_lines_the_first_are_named() {
    let place = Place::new("destination_file = 'to.txt'").with("to.txt", "x\n".repeat(50));
    let mistakes = place.mistakes();
    assert_eq!(mistakes.len(), 21);
    assert!(mistakes[19].starts_with("to.txt:20:1: "), "{}", mistakes[19]);
    assert_eq!(
        mistakes[20],
        "to.txt:20:1: service \"web\".destination_file: and 30 more bad lines after this one"
    );
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_cure() {
    let said = |key: &str| Place::new(key).with("empty.txt", "# nothing\n").mistakes();
    assert_eq!(
        said("destination_file = 'no.txt'"),
        [
            "sheer.toml:5:20: service \"web\".destination_file: there is no file no.txt; relative names begin where the \
          configuration file stands"
        ]
    );
    assert_eq!(
        said("client_file = '/'"),
        [
            "sheer.toml:5:15: service \"web\".client_file: / is no regular file; name a file of prefixes, one a line"
        ]
    );
    assert_eq!(
        said("client_file = 'empty.txt'"),
        [
            "sheer.toml:5:15: service \"web\".client_file: empty.txt holds no prefix, so that nothing would match; leave \
          the key out for any"
        ]
    );
    assert_eq!(
        said("client_file = '/dev/zero'"),
        [
            "sheer.toml:5:15: service \"web\".client_file: /dev/zero is no regular file; name a file of prefixes, one a line"
        ]
    );
    let zero = said("client_file = \"a\\u0000b\"");
    assert!(zero[0].contains("cannot be opened"), "{zero:?}");
}

#[test]
fn a_configuration_that_cannot_be_read_is_named_with_the_cure() {
    let place = Place::new("").with("latin1.toml", b"# \xfc\n").with("secret.toml", "");
    let read = |name: &str| {
        let read = Config::read(&place.path(name), "default".parse().unwrap());
        read.unwrap_err().to_string().replace(&format!("{}/", place.0.path().display()), "")
    };
    assert_eq!(
        read("no.toml"),
        "no.toml: there is no such file; give the path of a configuration file with -c"
    );
    assert_eq!(read("."), ".: it is a directory; name the file in it");
    assert_eq!(
        read("latin1.toml"),
        "latin1.toml:1:3: syntax: not text in UTF-8 from here on; save the file as UTF-8"
    );
    fs::write(place.path("large.toml"), vec![b'#'; 17 << 20]).unwrap();
    assert_eq!(
        read("large.toml"),
        "large.toml: it is larger than 16 MiB; put long lists of prefixes into files of their own, with \
         destination_file and client_file"
    );
    fs::set_permissions(place.path("secret.toml"), fs::Permissions::from_mode(0o000)).unwrap();
    // Root may read it all the same, and then finds it empty.
    assert!(read("secret.toml").contains("may not be read") || rustix::process::geteuid().is_root());
}

#[test]
fn a_million_prefixes_are_read() {
    let mut text = String::new();
    for n in 0..1_000_000_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        text.push_str(&format!("{}.{b}.{c}.0/24\n", a + 11));
    }
    let place = Place::new("destination_file = 'to.txt'").with("to.txt", text);
    assert_eq!(place.read().unwrap().summary(), "1 service, 1000000 prefixes, 1 interface");
}

#[test]
fn more_prefixes_than_are_possible_are_refused() {
    let place = Place::new("destination = '192.0.2.1'\ndestination_file = 'to.txt'")
        .with("to.txt", "::1\n".repeat(4_000_000));
    assert_eq!(
        place.mistakes(),
        [
            "sheer.toml:6:20: service \"web\".destination_file: 4000000 prefixes, with 1 before them; at most 4000000 in \
          all are possible: put neighbours together into shorter prefixes"
        ]
    );
}
