//! Configurations from the outside: text in, mistakes or a configuration out.

mod files;
mod fine;

use super::*;

/// Every kind of mistake with its message.
const GOLDEN: &str = include_str!("mistakes.txt");

fn lines(text: &str) -> Vec<String> {
    match check(text, "c", Path::new("/nonexistent"), "default".parse().unwrap()) {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes.to_string().lines().map(str::to_owned).collect(),
    }
}

/// What stands around the pieces of the golden file.
fn around(group: &str, piece: &str) -> String {
    let dataplane = "[dataplane]\ninterfaces = [\"eth0\", \"eth1\"]\n";
    let service = "[[service]]\nname = \"web\"\n";
    match group {
        "file" => format!("{piece}\n"),
        "dataplane" if piece.starts_with("interfaces =") => format!("[dataplane]\n{piece}\n{service}"),
        "dataplane" => format!("{dataplane}{piece}\n{service}"),
        "proxy" => format!("{dataplane}{service}[proxy]\n{piece}\n"),
        "service" => format!("{dataplane}{service}{piece}\n"),
        other => panic!("== {other}"),
    }
}

#[test]
fn every_mistake_has_its_place_and_message() {
    let mut group = "";
    let mut checked = 0;
    for block in GOLDEN.split("\n\n").skip(1) {
        if let Some(name) = block.trim_start().strip_prefix("== ") {
            group = name;
            continue;
        }
        let (said, piece): (Vec<&str>, Vec<&str>) = block.lines().partition(|line| line.starts_with("> "));
        let expected: Vec<String> = said.iter().map(|line| format!("c:{}", &line[2..])).collect();
        let text = around(group, &piece.join("\n"));
        assert_eq!(lines(&text), expected, "{text}");
        checked += 1;
    }
    assert!(checked > 180, "only {checked} blocks were found");
}

#[test]
fn all_mistakes_of_a_file_come_at_once_in_its_order() {
    let text = "\
[dataplane]
interfaces = [\"eth0\", \"eth0\", \"a/b\"]
when_down = \"close\"
mark = 0
tabel = 5

[proxy]
workers = 1000
idle_timeout = \"soon\"

[[service]]
name = \"web\"
protocol = \"udp\"
destination = [\"10.0.0.1/8\", \"192.0.2.0/24\"]
port = [80, \"90-80\", true]
interface = \"eth9\"

[[service]]
name = \"web\"
action = \"drop\"
source = \"client\"

[[service]]
nmae = \"mail\"
limit = { burst = 0, per = \"24\" }
";
    assert_eq!(
        lines(text),
        [
            "c:2:23: dataplane.interfaces: `eth0` is listed twice",
            "c:2:31: dataplane.interfaces: `a/b` is no interface's name: it holds a `/`; look with: ip link",
            "c:3:13: dataplane.when_down: `close` is not known; did you mean `closed`?",
            "c:4:8: dataplane.mark: 0 is out of range; write a number from 1 to 4294967295",
            "c:5:1: dataplane.tabel: `tabel` is no key in [dataplane]; did you mean `table`?",
            "c:8:11: proxy.workers: 1000 is out of range; write a number from 1 to 256",
            "c:9:16: proxy.idle_timeout: `soon` is no time; write for example \"5s\", \"2h 4m\" or \"500ms\"",
            "c:13:12: service \"web\".protocol: UDP is not proxied in this version; add action = \"pass\" or action = \
             \"drop\", or leave the service out: UDP that no service takes passes",
            "c:14:16: service \"web\".destination: 10.0.0.1/8 has bits set beyond its length; did you mean 10.0.0.0/8 or \
             10.0.0.1?",
            "c:15:22: service \"web\".port: the word true where a list of ports is expected; write for example port = \
             [80, 443, \"8000-8099\"]",
            "c:16:13: service \"web\".interface: `eth9` is not among dataplane.interfaces; did you mean `eth0`?",
            "c:19:8: service \"web\".name: service number 1 has this name already; give each a name of its own",
            "c:21:10: service \"web\".source: `source` has no meaning beside action = \"drop\": what matches is dropped; \
             leave it out",
            "c:23:1: service[3].name: the service has no name; write for example name = \"web\"",
            "c:24:1: service[3].nmae: `nmae` is no key in a [[service]]; did you mean `name`?",
            "c:25:9: service[3].limit: it limits nothing; write for example new_per_second = 100 or concurrent = 50",
            "c:25:19: service[3].limit.burst: 0 is out of range; write a number from 1 to 4294967295",
            "c:25:28: service[3].limit.per: `24` lacks its slash; did you mean \"/24\"?",
        ]
    );
}

#[test]
fn crlf_and_a_byte_order_mark_do_not_shift_places() {
    let text = around("service", "prot = 5");
    let said = ["c:5:1: service \"web\".prot: `prot` is no key in a [[service]]; did you mean `port`?"];
    assert_eq!(lines(&text.replace('\n', "\r\n")), said);
    assert_eq!(lines(&format!("\u{feff}{text}")), said);
    let first = lines("\u{feff}prot = 5");
    assert!(first.iter().any(|line| line.starts_with("c:1:1: prot: `prot` is no key")), "{first:?}");
}

#[test]
fn columns_count_characters() {
    let text = around("service", "action = \"pass\" # ü\n\"äö\" = 5 # ü");
    assert!(lines(&text)[0].starts_with("c:6:1: service \"web\".äö: `äö` is no key"), "{:?}", lines(&text));
    let text = around("service", "client = [\"ü\", \"10.0.0.1/8\"]");
    assert!(lines(&text)[1].starts_with("c:5:16: "), "{:?}", lines(&text));
}

#[test]
fn no_piece_of_a_configuration_makes_the_check_panic() {
    let text = fine::EVERYTHING;
    for (end, _) in text.char_indices() {
        let _ = lines(&text[..end]);
        let _ = lines(&text[end..]);
        let without = format!("{}{}", &text[..end], &text[end..].chars().skip(1).collect::<String>());
        let _ = lines(&without);
    }
}

#[test]
fn deep_nesting_is_refused() {
    let text = format!("x = {}", "[".repeat(100_000));
    assert!(lines(&text)[0].starts_with("c:1:85: syntax: cannot recurse further"));
    let text = format!("{}x = 1", "a.".repeat(10_000));
    assert!(!lines(&text).is_empty());
}

#[test]
fn more_services_than_fit_are_refused() {
    let most = sheer_common::policy::MAX_SERVICES;
    let mut text = "[dataplane]\ninterfaces = [\"eth0\"]\n".to_owned();
    for n in 0..=most {
        text.push_str(&format!("[[service]]\nname = \"s{n}\"\nport = {}\n", n + 1));
    }
    assert_eq!(
        lines(&text),
        ["c:12291:1: service \"s4096\": 4097 services; at most 4096 are possible".to_owned()]
    );
}

#[test]
fn a_service_that_can_never_match_is_named() {
    let text = "[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"a\"\nport = \"1-1000\"\n\
                [[service]]\nname = \"b\"\nport = 80\n";
    assert_eq!(
        lines(text),
        [
            "c:7:8: service \"b\".name: it can never match: service \"a\" (line 3) takes all that it would; put it before \
          that one, or leave it out"
        ]
    );
}
