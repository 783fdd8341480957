//! The access record: one line per connection, as text or JSON, and its way out of the worker.

mod sink;
mod time;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use crate::config::SameSubnet;
use crate::reason::{Blame, CloseReason};
use crate::relay::Path;
use crate::socket::{ClientAddr, OriginalDst, SourceAddr, SourceStep, UpstreamAddr};
pub use sink::{AccessLog, AccessLogError, RecordFormat, RecordSink, RecordWriter};
use time::Rfc3339;

/// What is told of one connection. The field names, in text and in JSON, are stable.
#[derive(Clone, Debug, Serialize)]
pub struct AccessRecord {
    /// When the connection was accepted.
    #[serde(rename = "time", serialize_with = "as_rfc3339")]
    pub accepted: SystemTime,
    pub id: u64,
    /// None where none took it.
    pub service: Option<Arc<str>>,
    pub client: ClientAddr,
    pub original: OriginalDst,
    /// None when no socket could be had.
    pub source: Option<SourceAddr>,
    /// What the source came to; none where it never came to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_step: Option<SourceStep>,
    /// `client-port` was asked for, and the port was taken.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub source_port_changed: bool,
    /// What was done because client and server are neighbours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_subnet: Option<SameSubnet>,
    pub upstream: Option<UpstreamAddr>,
    pub bytes_up: u64,
    pub bytes_down: u64,
    #[serde(rename = "duration_ms", serialize_with = "as_milliseconds")]
    pub duration: Duration,
    pub path: Path,
    pub reason: CloseReason,
    pub by: Blame,
}

fn as_rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Rfc3339(*time))
}

fn as_milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_micros() as f64 / 1000.0)
}

struct OrDash<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for OrDash<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

/// A field that is not always there.
struct Also(&'static str, Option<&'static str>);

impl fmt::Display for Also {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.map_or(Ok(()), |value| write!(f, " {}={value}", self.0))
    }
}

impl fmt::Display for AccessRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.duration.as_micros();
        write!(
            f,
            "{} id={} service={} client={} original={} source={}{}{}{} upstream={} bytes_up={} bytes_down={} duration_ms={}.{:03} path={} \
             reason={} by={}",
            Rfc3339(self.accepted),
            self.id,
            OrDash(self.service.as_deref()),
            self.client,
            self.original,
            OrDash(self.source),
            Also("source_step", self.source_step.map(SourceStep::label)),
            if self.source_port_changed { " source_port_changed=true" } else { "" },
            Also("same_subnet", self.same_subnet.map(SameSubnet::label)),
            OrDash(self.upstream),
            self.bytes_up,
            self.bytes_down,
            micros / 1000,
            micros % 1000,
            self.path.label(),
            self.reason.label(),
            self.by.label(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> AccessRecord {
        AccessRecord {
            accepted: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            id: 7,
            service: Some("web".into()),
            client: ClientAddr::new("[::ffff:192.0.2.1]:40000".parse().unwrap()),
            original: OriginalDst::new("198.51.100.2:80".parse().unwrap()),
            source: Some(SourceAddr::new("192.0.2.1:50000".parse().unwrap())),
            source_step: Some(SourceStep::Address),
            source_port_changed: false,
            same_subnet: None,
            upstream: Some(UpstreamAddr::new("198.51.100.2:80".parse().unwrap())),
            bytes_up: 78,
            bytes_down: 1024,
            duration: Duration::from_micros(12_034),
            path: Path::Copied,
            reason: CloseReason::ServerClosed,
            by: CloseReason::ServerClosed.blame(),
        }
    }

    #[test]
    fn text_is_one_line_of_stable_fields() {
        assert_eq!(
            record().to_string(),
            "2023-11-14T22:13:20.123Z id=7 service=web client=192.0.2.1:40000 original=198.51.100.2:80 source=192.0.2.1:50000 \
             source_step=address upstream=198.51.100.2:80 bytes_up=78 bytes_down=1024 duration_ms=12.034 path=copied reason=server_closed \
             by=server"
        );
        let changed =
            AccessRecord { source_port_changed: true, same_subnet: Some(SameSubnet::Proxy), ..record() };
        assert!(
            changed
                .to_string()
                .contains(" source_step=address source_port_changed=true same_subnet=proxy upstream=")
        );
        let never = AccessRecord {
            source: None,
            source_step: None,
            upstream: None,
            reason: CloseReason::Loop,
            ..record()
        };
        assert!(never.to_string().contains("source=- upstream=- "));
    }

    #[test]
    fn json_is_one_object_of_the_same_fields() {
        let json = serde_json::to_string(&AccessRecord { source_port_changed: true, ..record() }).unwrap();
        assert_eq!(
            json,
            "{\"time\":\"2023-11-14T22:13:20.123Z\",\"id\":7,\"service\":\"web\",\"client\":\"192.0.2.1:40000\",\
             \"original\":\"198.51.100.2:80\",\"source\":\"192.0.2.1:50000\",\"source_step\":\"address\",\
             \"source_port_changed\":true,\
             \"upstream\":\"198.51.100.2:80\",\"bytes_up\":78,\"bytes_down\":1024,\"duration_ms\":12.034,\
             \"path\":\"copied\",\"reason\":\"server_closed\",\"by\":\"server\"}"
        );
    }
}
