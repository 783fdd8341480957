//! From a worker to stdout or a file: a buffer per worker, one writer thread, a bounded queue between.
//!
//! A worker never waits for the reader of the log: when the queue is full its buffer is dropped, and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use super::AccessRecord;
use crate::stats::WorkerStats;

/// A worker hands over its buffer at this size, or at the next tick.
const BUFFER: usize = 32 * 1024;
/// Buffers that may wait for the writer: 8 MiB.
const QUEUE: usize = 256;
/// How long the end of the program waits for the reader of the log.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where access records go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    #[default]
    Stdout,
    /// Appended to.
    File(PathBuf),
    Off,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecordFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum AccessLogError {
    #[error(
        "the access log {path} cannot be opened: {source}; does its directory exist, and may this user write there?"
    )]
    Open { path: PathBuf, source: io::Error },
    #[error("the access log's thread cannot be started: {0}")]
    Thread(io::Error),
}

/// The thread that writes, and the queue to it.
#[derive(Debug)]
pub struct RecordWriter {
    queue: Option<SyncSender<Vec<u8>>>,
    format: RecordFormat,
    over: Receiver<()>,
}

impl RecordWriter {
    pub fn start(log: &AccessLog, format: RecordFormat) -> Result<Self, AccessLogError> {
        let output: Box<dyn Write + Send> = match log {
            AccessLog::Stdout => Box::new(io::stdout()),
            AccessLog::File(path) => Box::new(open(path)?),
            AccessLog::Off => {
                return Ok(Self { queue: None, format, over: sync_channel(0).1 });
            }
        };
        let (queue, incoming) = sync_channel(QUEUE);
        let (at_end, over) = sync_channel(1);
        thread::Builder::new()
            .name("sheer-access-log".into())
            .spawn(move || {
                write_all(output, &incoming);
                let _ = at_end.send(());
            })
            .map_err(AccessLogError::Thread)?;
        Ok(Self { queue: Some(queue), format, over })
    }

    /// A worker's end of the queue.
    #[must_use]
    pub fn sink(&self, stats: Arc<WorkerStats>) -> RecordSink {
        RecordSink { queue: self.queue.clone(), format: self.format, buffer: Vec::new(), records: 0, stats }
    }

    /// Waits, not for ever, until all that was handed over is written. All sinks must be gone.
    pub fn close(mut self) {
        if self.queue.take().is_some() && self.over.recv_timeout(LAST_WORDS) == Err(RecvTimeoutError::Timeout)
        {
            log::warn!("the access log's reader does not read; its last records are lost");
        }
    }
}

fn open(path: &PathBuf) -> Result<File, AccessLogError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|source| AccessLogError::Open { path: path.clone(), source })
}

fn write_all(mut output: Box<dyn Write + Send>, incoming: &Receiver<Vec<u8>>) {
    let mut failed = false;
    for buffer in incoming {
        match output.write_all(&buffer).and_then(|()| output.flush()) {
            Ok(()) => failed = false,
            Err(error) if !failed => {
                failed = true;
                log::error!("access records cannot be written: {error}; records are lost until they can");
            }
            Err(_) => {}
        }
    }
}

/// A worker's buffer of records.
#[derive(Debug)]
pub struct RecordSink {
    queue: Option<SyncSender<Vec<u8>>>,
    format: RecordFormat,
    buffer: Vec<u8>,
    records: u64,
    stats: Arc<WorkerStats>,
}

impl RecordSink {
    /// False when records go nowhere, and need not be made.
    #[must_use]
    pub fn wants_records(&self) -> bool {
        self.queue.is_some()
    }

    pub fn put(&mut self, record: &AccessRecord) {
        let written = match self.format {
            RecordFormat::Text => write!(self.buffer, "{record}"),
            RecordFormat::Json => serde_json::to_writer(&mut self.buffer, record).map_err(io::Error::from),
        };
        // Writing into a vector does not fail, and a record has no map with foreign keys.
        debug_assert!(written.is_ok());
        self.buffer.push(b'\n');
        self.records += 1;
        if self.buffer.len() >= BUFFER {
            self.flush();
        }
    }

    /// Hands over what is there.
    pub fn flush(&mut self) {
        let Some(queue) = self.queue.as_ref().filter(|_| !self.buffer.is_empty()) else { return };
        let full = self.buffer.len() >= BUFFER;
        let next = if full { Vec::with_capacity(BUFFER + BUFFER / 8) } else { Vec::new() };
        if queue.try_send(std::mem::replace(&mut self.buffer, next)).is_err() {
            self.stats.records_dropped.add(self.records);
        }
        self.records = 0;
    }
}

impl Drop for RecordSink {
    fn drop(&mut self) {
        self.flush();
    }
}
