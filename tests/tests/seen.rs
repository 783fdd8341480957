//! What can be seen of a running instance: status, flows, maps by name, access records, error messages.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::Command;

use sheer_tests::{Family, Lab, Server, Sheer, binary};

#[test]
fn flows_show_a_connection_while_it_lasts_and_not_afterwards() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("7").start();
    for family in Family::BOTH {
        let server = Server::echo(lab.server(), family, 7);
        let mut stream = lab.client().connect(server.address());
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        let flow = sheer_tests::wait_until("the connection stands in flows", sheer_tests::PATIENCE, || {
            sheer.json("flows").get(0).cloned()
        });
        stream.write_all(b"again").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        let flows = sheer.json("flows");
        assert_eq!(flow["client"], stream.local_addr().unwrap().to_string(), "{flows}");
        assert_eq!(flow["original"], server.address().to_string());
        assert_eq!(flow["source"], server.last().to_string());
        assert!(
            flows[0]["up"]["packets"].as_u64() > Some(0) && flows[0]["down"]["packets"].as_u64() > Some(0),
            "{flows}"
        );
        drop(stream);
        sheer_tests::wait_until("the flow is gone", sheer_tests::PATIENCE, || {
            (sheer.json("flows").as_array()?.is_empty()).then_some(())
        });
    }
    sheer.stop();
}

#[test]
fn status_tells_what_was_asked_for_and_counts() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").source("proxy").start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    lab.client().ask(server.address());
    let status = sheer.json("status");
    assert_eq!(status["instance"], sheer.instance());
    assert_eq!(status["state"], "running");
    assert_eq!(status["services"][0]["source"], "proxy");
    assert_eq!(status["connections"]["accepted"], 1);
    assert_eq!(status["verdicts"]["steer_new"], 1, "{status}");
    for failure in status["failures"].as_object().unwrap() {
        assert_eq!(failure.1, 0, "a helper failed: {failure:?}");
    }
    let text = sheer.control("status", &[]);
    assert!(String::from_utf8_lossy(&text.stdout).contains(sheer.instance()));
    sheer.stop();
}

#[test]
fn bpftool_shows_the_flows_map_by_field_names() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("7").start();
    let server = Server::echo(lab.server(), Family::V4, 7);
    let mut stream = lab.client().connect(server.address());
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    sheer_tests::wait_until("the connection stands in flows", sheer_tests::PATIENCE, || {
        sheer.json("flows").get(0).map(|_| ())
    });
    let pinned = format!("/sys/fs/bpf/sheer/{}/maps/flows", sheer.instance());
    let dump = Command::new("bpftool").args(["map", "dump", "pinned", &pinned]).output().unwrap();
    let text = String::from_utf8_lossy(&dump.stdout);
    for field in ["src_port", "dst_port", "packets", "bytes", "side", "FromClient", "FromServer"] {
        assert!(text.contains(field), "no {field} in {text}");
    }
    drop(stream);
    sheer.stop();
}

#[test]
fn the_access_record_tells_the_whole_story() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        let server = Server::start(lab.server(), family, 80, |mut stream| {
            stream.read_exact(&mut [0; 5])?;
            stream.write_all(b"an answer")
        });
        let mut stream = lab.client().connect(server.address());
        stream.write_all(b"hello").unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
        let client = stream.local_addr().unwrap().to_string();
        drop(stream);
        let record = sheer_tests::wait_until("the record is written", sheer_tests::PATIENCE, || {
            sheer.records().into_iter().find(|record| record["client"] == client)
        });
        assert_eq!(record["original"], server.address().to_string());
        assert_eq!(record["upstream"], server.address().to_string());
        assert_eq!(record["source"], server.last().to_string());
        assert_eq!((&record["bytes_up"], &record["bytes_down"]), (&5.into(), &9.into()));
        assert_eq!((&record["reason"], &record["by"]), (&"server_closed".into(), &"server".into()));
    }
    sheer.stop();
}

#[test]
fn access_records_can_go_to_a_file_as_text() {
    let lab = Lab::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_string_lossy().into_owned();
    let sheer =
        Sheer::on(&lab).tcp("80").option("--access-log", &path).option("--access-format", "text").start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    lab.client().ask(server.address());
    assert_eq!(sheer.stop().len(), 0, "nothing on stdout");
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(&format!(" original={} ", server.address())), "{text}");
}

#[test]
fn the_control_socket_is_for_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let socket = format!("/run/sheer/{}.sock", sheer.instance());
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    sheer.stop();
}

#[test]
fn a_second_instance_of_the_same_name_is_refused() {
    let lab = Lab::new();
    let builder = Sheer::on(&lab).tcp("80");
    let sheer = builder.clone().start();
    let second = builder.command().output().unwrap();
    let complaint = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success());
    assert!(complaint.contains("already running"), "{complaint}");
    let server = Server::hello(lab.server(), Family::V4, 80);
    lab.client().ask(server.address());
    assert_eq!(sheer.stop().len(), 1, "the first one is undisturbed");
}

#[test]
fn a_misspelt_interface_is_answered_with_the_right_one_and_leaves_nothing() {
    let lab = Lab::new();
    let builder = Sheer::on(&lab).tcp("80").interfaces(&["client0"]);
    let output = builder.command().output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(complaint.contains("clients0"), "{complaint}");
    assert!(!std::path::Path::new("/sys/fs/bpf/sheer").join(builder.instance()).exists());
    assert!(!lab.middle().sh("ip rule show").contains("fwmark"));
}

#[test]
fn without_privileges_it_says_which_are_needed() {
    let lab = Lab::new();
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", lab.middle().path()));
    command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]);
    command.arg(binary()).args(["run", "-i", "clients0", "--tcp", "80", "--instance", "without-privileges"]);
    let output = command.output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(complaint.contains("root") || complaint.contains("CAP_"), "{complaint}");
    assert!(!complaint.contains("panicked"), "{complaint}");
}

#[test]
fn wrong_use_ends_with_2_and_says_what_is_wrong() {
    for (arguments, about) in [
        (&["run", "--tcp", "80"][..], "interface"),
        (&["run", "-i", "lo", "--tcp", "99999"], "99999"),
        (&["run", "-i", "lo", "--tcp", "80", "--source", "nobody"], "nobody"),
        (&["run", "-i", "lo", "--tcp", "80", "--when-down", "maybe"], "maybe"),
        (&["run", "-i", "lo", "--tcp", "80", "--when-down", "maybe"], "open"),
        (&["run", "-i", "lo", "--tcp", "0"], "1"),
        (&["run", "-i", "lo", "--tcp", "80-8"], "80-8"),
        (&["run", "-i", "lo", "--tcp", "80", "--workers", "0"], "write a number from 1 to"),
        (&["run", "-i", "lo", "--tcp", "80", "--max-connections", "0"], "--max-connections"),
        (&["run", "-i", "lo", "--tcp", "80", "--attach", "tc"], "clsact"),
        (&["run", "-i", "lo", "--tcp", "80", "--instance", "a/b"], "letters"),
    ] {
        let output = Command::new(binary()).args(arguments).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
        assert!(complaint.contains(about), "{arguments:?}: {complaint}");
    }
}

#[test]
fn asking_an_instance_that_is_not_there_fails_with_a_word_about_it() {
    for command in ["status", "flows"] {
        let output =
            Command::new(binary()).args([command, "--instance", "nobody-of-this-name"]).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command}: {complaint}");
        assert!(complaint.contains("nobody-of-this-name"), "{command}: {complaint}");
    }
}

#[test]
fn connections_are_numbered_from_one_and_no_number_comes_twice() {
    for workers in ["1", "3"] {
        let lab = Lab::new();
        let sheer = Sheer::on(&lab).tcp("80").option("--workers", workers).start();
        let server = Server::hello(lab.server(), Family::V4, 80);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10).for_each(|_| drop(lab.client().ask(server.address()))));
            }
        });
        let records = sheer.stop();
        let numbers: BTreeSet<u64> = records.iter().map(|record| record["id"].as_u64().unwrap()).collect();
        assert_eq!(numbers.len(), 40, "{workers} workers: {numbers:?}");
        assert!(!numbers.contains(&0), "{workers} workers: 0 is nobody's number");
        assert!(workers != "1" || numbers.into_iter().eq(1..=40));
    }
}

#[test]
fn asked_for_its_status_a_dead_instance_is_said_to_be_dead_and_what_can_be_done() {
    let lab = Lab::new();
    let mut sheer = Sheer::on(&lab).tcp("80").start();
    sheer.kill();
    for arguments in [&[][..], &["--json"]] {
        let output = sheer.control("status", arguments);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{complaint}");
        for word in [sheer.instance(), "not running", "sheer run", "sheer cleanup"] {
            assert!(complaint.contains(word), "no {word} in: {complaint}");
        }
    }
    sheer.cleanup();
}
