//! A worker that panics is an error of the proxy, never a hang. In a process of its own, because it makes logging
//! panic, which is the one thing of others that an accept loop calls.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{net::TcpStream, sync::Arc};

mod common;

use common::{policies, service};
use sheer::{
    clients::NoClientTable,
    config::ProxyConfig,
    flow::NoFlowTable,
    proxy::Proxy,
    record::AccessLog,
    socket::transparent::{ListenOptions, Listeners},
};

struct Faulty;

impl log::Log for Faulty {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("sheer::accept")
    }

    fn log(&self, record: &log::Record<'_>) {
        assert!(!self.enabled(record.metadata()), "a fault in the accept loop");
    }

    fn flush(&self) {}
}

#[test]
fn a_panic_of_a_worker_comes_to_main_as_an_error() {
    log::set_logger(&Faulty).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let listeners = Listeners::bind(ListenOptions { transparent: false, mark: 0, backlog: 16 }).unwrap();
    let front = listeners.v4.local_addr().unwrap();
    let blackhole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = ProxyConfig { max_connections: 1, access_log: AccessLog::Off, ..ProxyConfig::default() };
    let policies = policies(service(blackhole.local_addr().unwrap()));
    let mut proxy = Proxy::start(
        Arc::new(config),
        policies.subscribe(),
        vec![listeners],
        vec![Box::new(NoFlowTable)],
        Box::new(NoClientTable),
    )
    .unwrap();
    // The second one meets the limit, of which the accept loop warns.
    let clients = [TcpStream::connect(front).unwrap(), TcpStream::connect(front).unwrap()];
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let failure = runtime.block_on(proxy.finished()).unwrap_err();
    assert_eq!(failure.worker, 0);
    assert!(failure.to_string().contains("a fault in the accept loop"), "{failure}");
    drop(clients);
    proxy.join().unwrap();
}
