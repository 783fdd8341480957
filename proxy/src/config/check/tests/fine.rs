//! Configurations without a mistake.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use super::*;
use crate::{
    config::{Action, AttachMode, Existing, Limit, PerClient, Protocol, Reply, SameSubnet, Timeouts, values},
    record::{AccessLog, RecordFormat},
    socket::{SourceMode, UpstreamAddr},
    upstream::Destination,
};

/// Every key once.
pub(super) const EVERYTHING: &str = r#"# ünïcode
[dataplane]
interfaces = ["eth0", "eth1"]
when_down = "closed"
mark = 0x10
table = 77
existing = "reset"
attach = "clsact"

[proxy]
workers = 3
max_connections = 500
connect_timeout = "1s"
idle_timeout = "1h 1m"
half_close_timeout = "2m"
drain_timeout = "9s"
access_log = "off"
access_format = "json"

[[service]]
name = "web"
protocol = "tcp"
destination = ["203.0.113.0/24", '2001:db8::/32', "192.0.2.1"]
port = [443, "8000-8099", 80, "443"]
client = "10.0.0.0/8"
interface = ["eth0"]
action = "proxy"
source = "client-port"
upstream = "original"
when_down = "open"
reply = "same-way"
same_subnet = "redirect"
intercept_local = true
answer_ping = true
limit = { new_per_second = 100, burst = 200, concurrent = 50, block = "10m", per = ["/64", "/24"] }

[[service]]
name = "dns"
protocol = "udp"
port = 53
action = "drop"

[[service]]
name = "rest"
client = "172.16.0.0/12"
source = "192.0.2.9"
upstream = "[::ffff:10.0.0.5]:8080"
same_subnet = "proxy"

[service.limit]
new_per_second = 7
per = "/48"

[[service]]
name = "last"
port = "25"
upstream = "2001:db8::5"
reply = "route"
same_subnet = "refuse"
intercept_local = false
[service.limit]
concurrent = 1
"#;

fn config(text: &str) -> Config {
    check(text, "c", Path::new("/nonexistent"), "default".parse().unwrap()).unwrap_or_else(|m| panic!("{m}"))
}

#[test]
fn every_key_means_something() {
    let config = config(EVERYTHING);
    assert_eq!(config.interfaces, ["eth0", "eth1"]);
    assert_eq!((config.mark, config.table), (Some(16), Some(77)));
    assert_eq!((config.existing, config.attach), (Existing::Reset, AttachMode::Clsact));
    assert_eq!((config.workers, config.max_connections), (3, 500));
    let timeouts = Timeouts {
        connect: Duration::from_secs(1),
        idle: Duration::from_secs(3660),
        half_close: Duration::from_secs(120),
    };
    assert_eq!((config.timeouts, config.drain_timeout), (timeouts, Duration::from_secs(9)));
    assert_eq!((&config.access_log, config.access_format), (&AccessLog::Off, RecordFormat::Json));
    assert_eq!(config.summary(), "4 services, 5 prefixes, 2 interfaces");

    let [web, dns, rest, last] = config.services.as_slice() else { panic!("{:?}", config.services) };
    assert_eq!((web.name.as_str(), web.protocol, web.action), ("web", Protocol::Tcp, Action::Proxy));
    let destinations = web.destinations.as_ref().unwrap();
    assert_eq!((destinations.v4.len(), destinations.v6.len()), (2, 1));
    assert_eq!(web.ports.as_ref().unwrap().to_string(), "80,443,8000-8099");
    assert_eq!(web.clients.as_ref().unwrap().len(), 1);
    assert_eq!(web.interfaces.as_deref().unwrap(), ["eth0"]);
    assert_eq!((web.source, web.when_down), (SourceMode::ClientPort, WhenDown::Open));
    assert_eq!((web.upstream, web.reply), (Destination::Original, Reply::SameWay));
    assert_eq!((web.same_subnet, web.intercept_local, web.answer_ping), (SameSubnet::Redirect, true, true));
    let limit = Limit {
        new_per_second: NonZeroU32::new(100),
        burst: NonZeroU32::new(200).unwrap(),
        concurrent: NonZeroU32::new(50),
        block: Some(Duration::from_secs(600)),
        per: PerClient { v4: 24, v6: 64 },
    };
    assert_eq!(web.limit, Some(limit));

    assert_eq!((dns.protocol, dns.action, dns.when_down), (Protocol::Udp, Action::Drop, WhenDown::Closed));
    let fixed: IpAddr = "192.0.2.9".parse().unwrap();
    assert_eq!((rest.source, &rest.destinations, &rest.ports), (SourceMode::Fixed(fixed), &None, &None));
    let to = UpstreamAddr::new("10.0.0.5:8080".parse().unwrap());
    assert_eq!((rest.upstream, rest.same_subnet), (Destination::Fixed(to), SameSubnet::Proxy));
    let limit = rest.limit.unwrap();
    assert_eq!((limit.burst.get(), limit.per), (7, PerClient { v4: 32, v6: 48 }));
    assert_eq!(last.upstream, Destination::Host("2001:db8::5".parse().unwrap()));
    assert_eq!((last.reply, last.same_subnet), (Reply::Route, SameSubnet::Refuse));
    assert!(!last.intercept_local && !last.answer_ping);
    let limit = last.limit.unwrap();
    assert_eq!((limit.new_per_second, limit.burst.get(), limit.concurrent), (None, 1, NonZeroU32::new(1)));
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = config("[dataplane]\ninterfaces = 'eth0'\n[[service]]\nname = 'all'\n");
    assert_eq!((config.existing, config.attach), (Existing::Keep, AttachMode::Auto));
    assert_eq!((config.mark, config.table, config.trace), (None, None, false));
    assert_eq!((config.workers, config.max_connections), (values::default_workers(), 100_000));
    assert_eq!((config.timeouts, config.drain_timeout), (Timeouts::default(), Duration::from_secs(30)));
    assert_eq!((config.access_log, config.access_format), (AccessLog::Stdout, RecordFormat::Text));
    let [all] = config.services.as_slice() else { panic!("{:?}", config.services) };
    assert!(all.destinations.is_none() && all.ports.is_none() && all.clients.is_none());
    assert!(all.interfaces.is_none() && all.limit.is_none());
    assert_eq!((all.protocol, all.action), (Protocol::Tcp, Action::Proxy));
    assert_eq!((all.source, all.when_down), (SourceMode::Client, WhenDown::Open));
    assert_eq!((all.upstream, all.reply), (Destination::Original, Reply::Route));
    assert_eq!((all.same_subnet, all.intercept_local, all.answer_ping), (SameSubnet::Refuse, false, false));
}

#[test]
fn dotted_keys_and_inline_tables_are_the_same() {
    let dotted = config(
        "dataplane.interfaces = ['eth0']\nservice = [{ name = 'a', limit.concurrent = 5, port = 1 }, { name = 'b' }]\n",
    );
    let plain = config(
        "[dataplane]\ninterfaces = ['eth0']\n[[service]]\nname = 'a'\nport = 1\n[service.limit]\nconcurrent = 5\n\
         [[service]]\nname = 'b'\n",
    );
    assert_eq!(format!("{dotted:?}"), format!("{plain:?}"));
}

#[test]
fn the_examples_of_the_documentation_are_fine() {
    let page = include_str!("../../../../../docs/config.md");
    let blocks: Vec<&str> =
        page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 3);
    for block in blocks {
        config(block);
    }
}

#[test]
fn every_key_is_documented() {
    let page = include_str!("../../../../../docs/config.md");
    let keys = EVERYTHING.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key);
    for key in keys.chain(["destination_file", "client_file", "burst", "block"]) {
        assert!(page.contains(&format!("| `{key}` |")), "{key}");
    }
}
