//! Pings to addresses that only a service answers for.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::net::{IpAddr, SocketAddr};

use sheer_tests::{Family, Host, Lab, PATIENCE, Server, Sheer, wait_until};

/// An address that the client's route leads to the middle, and that nobody has.
fn nobodys(family: Family) -> IpAddr {
    match family {
        Family::V4 => "203.0.113.80".parse().unwrap(),
        Family::V6 => "2001:db8:9::80".parse().unwrap(),
    }
}

/// One echo request, with another hop limit than its reply shall have, so that checksums differ too; whether it was answered within a second.
fn ping(host: &Host, to: IpAddr, size: usize) -> bool {
    let mut command = host.command("ping");
    command.args(["-n", "-c", "1", "-W", "1", "-t", "30", "-s", &size.to_string(), &to.to_string()]);
    command.output().expect("ping(8) is needed").status.success()
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    wait_until(what, PATIENCE, || condition().then_some(()));
}

#[test]
fn pings_are_answered_while_the_server_can_be_reached() {
    for family in Family::BOTH {
        let lab = Lab::new();
        let (asked, upstream) = (nobodys(family), SocketAddr::new(lab.server().ip(family), 8080));
        let service = format!(
            "[[service]]\nname = \"vip\"\nport = 80\ndestination = \"{asked}\"\nupstream = \"{upstream}\"\n\
             answer_ping = true\n"
        );
        let sheer = Sheer::on(&lab).config(&service).start();
        let client = lab.client();
        assert!(!ping(client, asked, 56), "nobody answers while there is no server");
        let server = Server::hello(lab.server(), family, upstream.port());
        wait_for("the ping is answered", || ping(client, asked, 56));
        // An odd length, and one near the MTU: checksums and lengths are right.
        assert!(ping(client, asked, 1) && ping(client, asked, 1399));
        assert!(sheer.verdicts("answer_ping") >= 3);
        drop(server);
        wait_for("the ping is not answered any more", || !ping(client, asked, 56));
        sheer.stop();
    }
}

#[test]
fn pings_to_others_go_their_way() {
    let lab = Lab::new();
    let service = "[[service]]\nname = \"web\"\nport = 80\nclient = \"192.0.2.99\"\nanswer_ping = true\n";
    let sheer = Sheer::on(&lab).config(service).start();
    for family in Family::BOTH {
        assert!(ping(lab.client(), lab.server().ip(family), 56), "the server itself answers");
        assert!(ping(lab.client(), lab.client().gateway(family), 56), "and so does this host");
    }
    assert_eq!(sheer.verdicts("answer_ping"), 0);
    sheer.stop();
}
