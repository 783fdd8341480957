//! A program that runs beside this one: its lines are read as they come, and it ends with its value.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::process;

/// How long a program may take to end after SIGTERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    Out,
    Err,
}

#[derive(Default)]
struct Said {
    lines: Vec<(Stream, String)>,
    open: usize,
}

type Log = Arc<(Mutex<Said>, Condvar)>;

pub struct Service {
    name: &'static str,
    child: Child,
    log: Log,
}

impl Service {
    /// Starts `command` away from the terminal's Ctrl-C, its output caught. Its stdin is a pipe that closes with
    /// [`Service::close_stdin`].
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        process::shield(command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}: `{}`", process::line(command)))?;
        let log = Log::default();
        follow(&log, Stream::Out, child.stdout.take());
        follow(&log, Stream::Err, child.stderr.take());
        Ok(Self { name, child, log })
    }

    /// Waits for a line that `wanted` takes, from the first on, and returns what it made of it.
    ///
    /// # Errors
    /// When the program ends, or `patience` runs out, without such a line; the message has what it said.
    pub fn wait_for<T>(
        &self,
        what: &str,
        patience: Duration,
        mut wanted: impl FnMut(Stream, &str) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        let (said, news) = &*self.log;
        let mut said = lock(said);
        let mut seen = 0;
        loop {
            while let Some((stream, line)) = said.lines.get(seen) {
                if let Some(found) = wanted(*stream, line) {
                    return Ok(found);
                }
                seen += 1;
            }
            if said.open == 0 {
                return Err(self.complaint(&said, &format!("ended before {what}")));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let late = format!("no {what} after {} s", patience.as_secs());
                return Err(self.complaint(&said, &late));
            }
            said = news.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The lines after the first `known`, of both streams, as soon as there are some or `patience` runs out. `None` when
    /// none can come any more.
    pub fn news(&self, known: usize, patience: Duration) -> Option<Vec<String>> {
        let (said, news) = &*self.log;
        let quiet = |said: &mut Said| said.lines.len() <= known && said.open > 0;
        let waited = news.wait_timeout_while(lock(said), patience, quiet);
        let (said, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<_> = said.lines.iter().skip(known).map(|(_, line)| line.clone()).collect();
        (said.open > 0 || !lines.is_empty()).then_some(lines)
    }

    /// The number of lines that came until now, on both streams.
    pub fn line_count(&self) -> usize {
        lock(&self.log.0).lines.len()
    }

    /// The lines that came on `stream` until now.
    pub fn lines(&self, stream: Stream) -> Vec<String> {
        let said = lock(&self.log.0);
        said.lines.iter().filter(|(from, _)| *from == stream).map(|(_, line)| line.clone()).collect()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// # Errors
    /// When the program does not read it, or stdin is closed.
    pub fn write_stdin(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.child.stdin.as_mut().with_context(|| format!("stdin of {} is closed", self.name))?;
        stdin.write_all(bytes).with_context(|| format!("writing to {}", self.name))
    }

    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits until the program ends by itself.
    ///
    /// # Errors
    /// When it does not within `patience`, or does not succeed.
    pub fn finish(mut self, patience: Duration) -> Result<()> {
        self.close_stdin();
        match self.wait_until(Instant::now() + patience)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.complaint(&lock(&self.log.0), &format!("failed ({status})"))),
            None => bail!("{} did not end within {} s", self.name, patience.as_secs()),
        }
    }

    /// Asks the program to end and waits for it.
    ///
    /// # Errors
    /// When it has to be killed.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        match self.wait_until(Instant::now() + PATIENCE)? {
            Some(status) => Ok(status),
            None => {
                bail!("{} did not end within {} s of SIGTERM and was killed", self.name, PATIENCE.as_secs())
            }
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }

    fn wait_until(&mut self, deadline: Instant) -> Result<Option<ExitStatus>> {
        loop {
            if let Some(status) =
                self.child.try_wait().with_context(|| format!("waiting for {}", self.name))?
            {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            // std has no wait with a deadline.
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn complaint(&self, said: &Said, what: &str) -> anyhow::Error {
        let lines: String =
            said.lines.iter().rev().take(20).rev().map(|(_, line)| format!("\n    {line}")).collect();
        anyhow!("{} {what}{}{lines}", self.name, if lines.is_empty() { "; it said nothing" } else { ":" })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::TERM);
            if !matches!(self.wait_until(Instant::now() + PATIENCE), Ok(Some(_))) {
                self.signal(Signal::KILL);
                let _ = self.child.wait();
            }
        }
    }
}

fn follow(log: &Log, stream: Stream, source: Option<impl Read + Send + 'static>) {
    let Some(source) = source else { return };
    lock(&log.0).open += 1;
    let log = Arc::clone(log);
    thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            lock(&log.0).lines.push((stream, line));
            log.1.notify_all();
        }
        lock(&log.0).open -= 1;
        log.1.notify_all();
    });
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}
