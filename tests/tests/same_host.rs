//! Servers and clients on the proxy's own host.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sheer_tests::{Dial, Family, Lab, PATIENCE, Server, Sheer, wait_until};

/// Longer than a window, so that it cannot get through without its answers.
const BULK: usize = 5_000_000;

fn assert_sees_the_client(lab: &Lab, asked: SocketAddr, server: &Server) {
    lab.client().ask(asked);
    assert!(lab.client().v4() == server.peer_of_last() || lab.client().v6() == server.peer_of_last());
}

fn assert_carries_bulk(lab: &Lab, asked: SocketAddr) {
    let stream = lab.client().connect(asked);
    let sent: Vec<u8> = (0..BULK).map(|n| (n / 7) as u8).collect();
    let mut received = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&sent).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        });
        (&stream).read_to_end(&mut received).unwrap();
    });
    assert!(received == sent, "{} of {BULK} bytes came back, or other ones", received.len());
}

#[test]
fn a_server_at_an_address_of_the_host_sees_the_client() {
    for mode in ["client", "client-port"] {
        let lab = Lab::new();
        let own = |family| lab.client().gateway(family);
        let services = format!(
            "[[service]]\nname = \"own\"\nsource = \"{mode}\"\nport = [80, 7]\ndestination = [\"{}\", \"{}\"]\n",
            own(Family::V4),
            own(Family::V6)
        );
        let sheer = Sheer::on(&lab).config(&services).start();
        for family in Family::BOTH {
            let hello = Server::hello_at(lab.middle(), SocketAddr::new(own(family), 80));
            assert_sees_the_client(&lab, hello.address(), &hello);
            let echo = Server::echo_at(lab.middle(), SocketAddr::new(own(family), 7));
            assert_carries_bulk(&lab, echo.address());
        }
        let records = sheer.stop();
        assert_eq!(records.len(), 4, "{records:?}");
    }
}

#[test]
fn a_server_on_loopback_sees_the_client() {
    let lab = Lab::new();
    for (family, at) in
        [(Family::V4, IpAddr::from(Ipv4Addr::LOCALHOST)), (Family::V6, Ipv6Addr::LOCALHOST.into())]
    {
        // One asked for at this host's own address, one at an address that nobody has.
        let foreign = lab.server().ip(family);
        for asked in [lab.client().gateway(family), foreign] {
            let services = format!(
                "[[service]]\nname = \"web\"\nport = 443\ndestination = \"{asked}\"\nupstream = \"{}\"\n\
                 [[service]]\nname = \"bulk\"\nport = 7\ndestination = \"{asked}\"\nupstream = \"{}\"\n",
                SocketAddr::new(at, 8443),
                SocketAddr::new(at, 7007),
            );
            let sheer = Sheer::on(&lab).config(&services).start();
            let hello = Server::hello_at(lab.middle(), SocketAddr::new(at, 8443));
            assert_sees_the_client(&lab, SocketAddr::new(asked, 443), &hello);
            let _echo = Server::echo_at(lab.middle(), SocketAddr::new(at, 7007));
            assert_carries_bulk(&lab, SocketAddr::new(asked, 7));
            sheer.stop();
        }
    }
    assert_eq!(lab.middle().sh("cat /proc/sys/net/ipv4/conf/all/route_localnet").trim(), "0");
}

#[test]
fn a_closed_port_on_the_host_refuses_at_once() {
    let lab = Lab::new();
    let asked = SocketAddr::new(lab.client().gateway(Family::V4), 80);
    let services = format!("[[service]]\nname = \"own\"\nport = 80\ndestination = \"{}\"\n", asked.ip());
    let sheer = Sheer::on(&lab).config(&services).start();
    // The reset may be as fast as connect(2).
    let answer = lab.client().dial(Dial::to(asked)).and_then(|mut stream| stream.read(&mut [0]));
    assert!(answer.is_err(), "the proxy has to reset");
    assert_eq!(sheer.record()["reason"], "refused");
    sheer.stop();
}

#[test]
fn connections_of_this_host_are_taken_where_a_service_says_so() {
    let lab = Lab::new();
    let services = "[[service]]\nname = \"web\"\nport = [80, 7]\nintercept_local = true\n\
                    [[service]]\nname = \"others\"\nport = [81]\n";
    let sheer = Sheer::on(&lab).config(services).start();
    for family in Family::BOTH {
        let server = Server::hello(lab.server(), family, 80);
        let answer = lab.middle().ask(server.address());
        let own = lab.server().gateway(family);
        assert_eq!(server.peer_of_last(), own, "{answer}");
        let record = wait_until("a record", PATIENCE, || {
            sheer.records().into_iter().find(|r| r["original"] == server.address().to_string())
        });
        assert_eq!(record["service"], "web");
        assert!(
            record["client"].as_str().unwrap().starts_with(&own.to_string()) || family == Family::V6,
            "{record}"
        );
        // Those that come in from outside are taken as ever.
        lab.client().ask(server.address());
        assert_eq!(server.peer_of_last(), lab.client().ip(family));
        // A service that does not say so leaves local connections alone.
        let other = Server::hello(lab.server(), family, 81);
        lab.middle().ask(other.address());
        assert_eq!(other.count(), 1);
        let echo = Server::echo(lab.server(), family, 7);
        let mut stream = lab.middle().run(|| std::net::TcpStream::connect(echo.address())).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), echo.address(), "the process sees whom it asked for");
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
    }
    let records = sheer.stop();
    let of_web = records.iter().filter(|r| r["service"] == "web").count();
    assert_eq!((records.len(), of_web), (6, 6), "each connection once, none of the proxy's own: {records:?}");
}

#[test]
fn local_connections_survive_syn_cookies_and_a_port_used_again() {
    let lab = Lab::new();
    lab.middle().sysctl("net.ipv4.tcp_syncookies", "2");
    let services = "[[service]]\nname = \"web\"\nport = 80\nintercept_local = true\n";
    let sheer = Sheer::on(&lab).config(services).start();
    let server = Server::hello(lab.server(), Family::V4, 80);
    for _ in 0..50 {
        lab.middle().ask(server.address());
    }
    assert_eq!(sheer.stop().len(), 50);
}
