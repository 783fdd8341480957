//! Ctrl-C and its relatives: what was made is taken down in order, whenever they come.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Catches SIGINT, SIGTERM and SIGHUP from its making on, for the rest of the process.
pub struct Interrupt {
    raised: Arc<AtomicBool>,
}

impl Interrupt {
    /// # Errors
    /// When the signals cannot be caught.
    pub fn watch() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("cannot start the signal handler")?;
        let mut signals = {
            let _inside = runtime.enter();
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            kinds
                .into_iter()
                .map(signal)
                .collect::<std::io::Result<Vec<_>>>()
                .context("cannot catch signals")?
        };
        let raised = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&raised);
        thread::spawn(move || {
            runtime.block_on(async move {
                let [interrupt, terminate, hangup] = &mut signals[..] else { return };
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            flag.store(true, Ordering::Relaxed);
        });
        Ok(Self { raised })
    }

    /// # Errors
    /// Once a signal has come: the way out for work that is made of short steps.
    pub fn check(&self) -> Result<()> {
        if self.raised.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}
