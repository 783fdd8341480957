//! IPv4 addresses in IPv6 clothes (`::ffff:192.0.2.1`, RFC 4291 section 2.5.5.2): never on the wire, never where people read.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::net::{IpAddr, SocketAddr};

use sheer_tests::{
    Capture, Dial, Family, Lab, PATIENCE, Packet, Server, Sheer, SheerBuilder, ping, wait_until,
};

/// The same address as IPv6 writes it.
fn disguised(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn is_mapped(packet: &Packet) -> bool {
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    };
    mapped(packet.source) || mapped(packet.destination)
}

/// Holds a connection of each family and gives everything that can be read about them, the access records last.
fn everything_said(lab: &Lab, builder: SheerBuilder<'_>) -> String {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut sheer = builder.option("--access-log", &log.path().to_string_lossy()).start();
    let mut said = Vec::new();
    let servers = Family::BOTH.map(|family| Server::echo(lab.server(), family, 7));
    let streams = servers.each_ref().map(|server| {
        // A client that has one socket for both families.
        let mut stream = lab.client().dial(Dial::to(disguised(server.address()))).unwrap();
        ping(&mut stream).unwrap();
        stream
    });
    wait_until("both connections stand in flows", PATIENCE, || {
        (sheer.json("flows").as_array()?.len() == 2).then_some(())
    });
    for command in ["status", "flows", "services"] {
        for arguments in [&[][..], &["--json"]] {
            let output = sheer.control(command, arguments);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            said.push(String::from_utf8(output.stdout).unwrap());
        }
    }
    said.push(sheer.map("flows"));
    drop(streams);
    sheer.wait_for_no_flows();
    said.extend(sheer.process().stderr());
    sheer.stop();
    let records = std::fs::read_to_string(log.path()).unwrap();
    assert_eq!(records.lines().count(), 2, "{records}");
    said.push(records);
    let client = lab.client().v4().to_string();
    assert!(said.last().unwrap().contains(&client), "{said:#?}");
    said.join("\n")
}

#[test]
fn neither_the_wire_nor_any_record_shows_one() {
    for format in ["json", "text"] {
        for source in ["client", "client-port"] {
            let lab = Lab::new();
            let captures = [lab.middle(), lab.client(), lab.server()].map(Capture::start);
            let builder = Sheer::on(&lab).tcp("7").source(source).option("--access-format", format);
            let text = everything_said(&lab, builder);
            assert!(!text.to_lowercase().contains("::ffff"), "{text}");
            for capture in captures {
                assert!(capture.count(|packet| packet.source.is_ipv4()) > 0, "the capture saw nothing");
                assert_eq!(capture.count(is_mapped), 0, "{:?}", capture.packets());
            }
        }
    }
}
