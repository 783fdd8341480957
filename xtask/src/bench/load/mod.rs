//! The load generator: client and server as subcommands of this program, one thread each, epoll and no allocation in
//! the loop. What it can do at most is what plain routing shows.

mod bulk;
mod churn;
mod echo;
mod idle;
mod poller;
mod segments;
mod tally;
pub mod target;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// The size of a message and of its answer, bytes.
pub const MESSAGE: usize = 64;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    /// Send as fast as possible, copied from a buffer as most programs do; counts bytes at the receiver.
    Bulk,
    /// The same from pages of a file, by sendfile(2).
    BulkPages,
    /// Message, answer, message, …; counts answers.
    Echo,
    /// Connect, message, answer, close; counts connections.
    Churn,
    /// Segments of connections that are not there, to `connections` addresses; counts segments sent.
    Segments,
    /// Connect, one message and answer, then silence until stdin ends.
    Idle,
}

#[derive(Args, Debug)]
pub struct Load {
    pub kind: Kind,
    #[arg(long)]
    pub to: SocketAddrV4,
    /// Where the server tells what it has received, past every proxy. For bulk.
    #[arg(long)]
    pub tally: Option<SocketAddrV4>,
    /// Connections at the same time.
    #[arg(long)]
    pub connections: usize,
    /// Seconds before counting begins.
    #[arg(long, default_value_t = 0.5)]
    pub warm: f64,
    /// Seconds that are counted.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Addresses to connect from, in turns.
    #[arg(long, value_delimiter = ',')]
    pub from: Vec<Ipv4Addr>,
    /// How many connections earlier calls made: their ports are passed over.
    #[arg(long, default_value_t = 0)]
    pub used: u64,
}

/// What a load did in the time that counts.
#[derive(Serialize, Deserialize, Debug, Clone, Default)]
pub struct Outcome {
    /// Bytes, answers or connections.
    pub units: u64,
    pub seconds: f64,
    /// Connections that broke or were refused; those still waiting at the end for more than a second among them.
    pub failed: u64,
    /// All connections made, also outside of the time that counts.
    pub connections: u64,
    /// Of an answer or of a connection, microseconds. Zero for bulk.
    pub p50_us: u32,
    pub p99_us: u32,
}

impl Outcome {
    /// The connections that certainly went all the way; of those under way at the end, `loose` at most, some did not.
    pub fn finished(&self, loose: usize) -> u64 {
        let loose = loose as u64;
        if self.connections > loose { self.connections - loose } else { self.connections }
    }
}

/// # Errors
/// When the target cannot be reached at all.
pub fn run(load: &Load) -> Result<()> {
    let outcome = match load.kind {
        Kind::Bulk | Kind::BulkPages => bulk::run(load)?,
        Kind::Echo => echo::run(load)?,
        Kind::Churn => churn::run(load)?,
        Kind::Segments => segments::run(load)?,
        Kind::Idle => return idle::run(load),
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// The time that counts: from the end of the warming up to the end.
struct Window {
    begin: Instant,
    end: Instant,
}

impl Window {
    fn of(load: &Load) -> Self {
        let begin = Instant::now() + Duration::from_secs_f64(load.warm);
        Self { begin, end: begin + Duration::from_secs_f64(load.seconds) }
    }
}

/// Counts units and their durations within the window.
struct Meter {
    window: Window,
    counted_from: Option<Instant>,
    outcome: Outcome,
    /// How often a duration of so many microseconds was seen; the last one holds all above.
    histogram: Vec<u32>,
}

impl Meter {
    fn new(load: &Load) -> Self {
        let window = Window::of(load);
        Self { window, counted_from: None, outcome: Outcome::default(), histogram: vec![0; 200_000] }
    }

    /// Takes the time once a turn of the loop; `false` when it is over.
    fn goes_on(&mut self, now: Instant) -> bool {
        if self.counted_from.is_none() && now >= self.window.begin {
            self.counted_from = Some(now);
        }
        now < self.window.end
    }

    fn count(&mut self, units: u64) {
        if self.counted_from.is_some() {
            self.outcome.units += units;
        }
    }

    fn time(&mut self, took: Duration) {
        if self.counted_from.is_some() {
            let last = self.histogram.len() - 1;
            let bucket = usize::try_from(took.as_micros()).unwrap_or(last).min(last);
            self.histogram[bucket] += 1;
        }
    }

    fn finish(mut self, now: Instant) -> Outcome {
        self.outcome.seconds = self.counted_from.map_or(0.0, |from| (now - from).as_secs_f64());
        self.outcome.p50_us = self.percentile(0.50);
        self.outcome.p99_us = self.percentile(0.99);
        self.outcome
    }

    fn percentile(&self, share: f64) -> u32 {
        let total: u64 = self.histogram.iter().map(|&count| u64::from(count)).sum();
        let wanted = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        let reached = self.histogram.iter().position(|&count| {
            seen += u64::from(count);
            seen >= wanted
        });
        reached.and_then(|micros| u32::try_from(micros).ok()).unwrap_or(0)
    }
}
