//! The end: connections first, then everything that the start made, in reverse.

use std::rc::Rc;

use sheer_common::abi::Settings;
use tokio::{task::spawn_local, time::sleep};

use super::{Instance, RunError, Signals, report};
use crate::{
    config::{Action, WhenDown},
    dataplane::clsact,
    leftover, route,
};

impl Instance {
    /// Until told to leave, or a worker dies; then until the connections have ended or had their time.
    pub(super) async fn serve(&mut self, signals: &mut Signals) -> Result<(), RunError> {
        loop {
            tokio::select! {
                ended = self.proxy.finished() => return Ok(ended?),
                name = signals.next() => match name {
                    "SIGHUP" if self.rules.config().file.is_some() => self.reload(),
                    _ => {
                        log::info!("{name}: leaving");
                        break;
                    }
                },
                () = self.drain_asked.notified() => {
                    log::info!("asked to drain: leaving");
                    break;
                }
            }
        }
        self.drain(signals).await
    }

    /// SIGHUP, as daemons take it: the file is read again. Aside, so that other signals are heard meanwhile.
    fn reload(&self) {
        let (rules, dataplane) = (Rc::clone(&self.rules), Rc::clone(&self.dataplane));
        spawn_local(async move {
            match rules.reload(None, &dataplane).await {
                Ok(done) => log::info!("SIGHUP: in force: {}", done.in_force),
                Err(e) => log::error!("SIGHUP: {e}; what was in force before still is"),
            }
        });
    }

    async fn drain(&mut self, signals: &mut Signals) -> Result<(), RunError> {
        self.draining.set(true);
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        {
            let mut dataplane = self.dataplane.borrow_mut();
            let now = dataplane.settings()?;
            dataplane.set_settings(Settings { draining: 1, ..now })?;
        }
        let own = route::local_addresses().await?;
        // A handshake ends at a listener: closing it would reset the client that is about to finish one.
        leftover::handshakes_done(&own).await;
        self.proxy.drain();
        let live = self.proxy.live();
        let patience = self.rules.config().drain_timeout;
        if live > 0 {
            let patience = humantime::format_duration(patience);
            log::info!("{live} connections have {patience} to end; a second signal resets them");
        }
        let drained = tokio::select! {
            ended = self.proxy.finished() => { ended?; true }
            () = sleep(patience) => false,
            name = signals.next() => { log::info!("{name} again"); false }
        };
        if !drained {
            log::info!("resetting {} connections", self.proxy.live());
            self.proxy.force();
            self.proxy.finished().await?;
        }
        // Sockets that the proxy has closed may still have data to deliver; without the route it would be lost.
        tokio::select! {
            () = leftover::delivered(&own) => {}
            _ = signals.next() => {}
        }
        Ok(())
    }

    /// Takes everything down: programs, pins, route, workers, files.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest is removed nevertheless.
    pub(super) async fn stop(self) -> Result<(), RunError> {
        let filters = self.attachments.borrow().clsact();
        drop(self.attachments);
        let mut outcome = self.pinned.remove().map_err(RunError::from);
        for filter in &filters {
            outcome = outcome.and(clsact::remove(filter).await.map_err(RunError::from));
        }
        for task in [self.following, self.answering, self.sweeping] {
            task.abort();
            // Cancelled: its end cannot fail otherwise.
            let _ = task.await;
        }
        if let Some(route) = Rc::into_inner(self.route) {
            outcome = outcome.and(route.remove().await.map_err(RunError::from));
        }
        outcome = outcome.and(self.proxy.join().map_err(RunError::from));
        self.places.remove();
        outcome
    }

    /// The end of an instance of which a part has died. Where a service must not pass unproxied, the programs stay
    /// and drop its connections, as they do after `kill -9`; otherwise everything is taken down.
    pub(super) async fn fail(self, failure: RunError) -> RunError {
        let config = self.rules.config();
        if config.services.iter().all(|s| s.when_down == WhenDown::Open || s.action != Action::Proxy) {
            report(self.stop().await);
            return failure;
        }
        log::error!(
            "new connections are dropped until `sheer run` takes over or `sheer cleanup` removes the programs"
        );
        for task in [self.following, self.answering, self.sweeping] {
            task.abort();
            let _ = task.await;
        }
        if let Some(attachments) = Rc::into_inner(self.attachments) {
            attachments.into_inner().leave();
        }
        self.pinned.leave();
        if let Some(route) = Rc::into_inner(self.route) {
            route.leave();
        }
        failure
    }
}
