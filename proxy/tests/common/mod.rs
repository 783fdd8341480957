//! What the tests of the proxy without its kernel programs have in common.

use std::net::SocketAddr;
use std::sync::Arc;

use sheer::config::{Prefixes, Service};
use sheer::policy::Policy;
use sheer::service::Policies;
use sheer::socket::{SourceMode, UpstreamAddr};
use sheer::upstream::Destination;
use tokio::sync::watch;

/// A service that takes every connection to loopback, which is left alone by services that do not name it, and gives
/// them all to one server.
pub fn service(server: SocketAddr) -> Service {
    Service {
        destinations: Some(Prefixes { v4: vec!["127.0.0.0/8".parse().unwrap()], v6: vec![] }),
        source: SourceMode::Proxy,
        upstream: Destination::Fixed(UpstreamAddr::new(server)),
        ..Service::any("test")
    }
}

/// A policy of one service.
pub fn policies(service: Service) -> watch::Sender<Arc<Policies>> {
    let policy = Policy::new(&[service], &[], 1, &[0]).unwrap();
    watch::Sender::new(Arc::new(Policies::new(Arc::new(policy), Arc::default(), Arc::default())))
}
