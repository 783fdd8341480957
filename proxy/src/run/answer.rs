//! What the control socket is answered.

use std::rc::Rc;

use futures_util::FutureExt as _;
use serde::Serialize;
use tokio::sync::Notify;

use super::{rules::ReloadError, shown::Shown};
use crate::admin::{self, Done, Request, Unblocked};

/// Answers for a running instance.
pub(super) struct Answers {
    pub(super) shown: Shown,
    pub(super) drain_asked: Rc<Notify>,
}

impl Answers {
    pub(super) fn handler(self: Rc<Self>) -> admin::Handler {
        Rc::new(move |request| {
            let answers = Rc::clone(&self);
            async move { answers.answer(request).await }.boxed_local()
        })
    }

    async fn answer(&self, request: Request) -> String {
        let Shown { dataplane, rules, stats, .. } = &self.shown;
        match request {
            Request::Status => json(self.shown.status()),
            Request::Services => json(self.shown.services()),
            Request::Drain => {
                self.drain_asked.notify_one();
                serde_json::json!({ "live": stats.snapshot().live }).to_string()
            }
            Request::Reload { file } => match rules.reload(file, dataplane).await {
                Err(ReloadError::Mistakes(mistakes)) => {
                    serde_json::json!({ "mistakes": mistakes.to_string() }).to_string()
                }
                done => json(done),
            },
            Request::Blocked => json(self.shown.blocked()),
            Request::Block { client, time } => {
                json(dataplane.borrow_mut().block(client, time).map(|()| Done { done: true }))
            }
            Request::Unblock { client } => {
                json(dataplane.borrow_mut().unblock(client).map(|ended| Unblocked { ended }))
            }
            Request::Explain(question) => json(self.shown.explain(&question).await),
        }
    }
}

fn json<T: Serialize, E: std::error::Error>(answer: Result<T, E>) -> String {
    let failed = |e: &dyn std::error::Error| serde_json::json!({ "error": e.to_string() }).to_string();
    match answer {
        Ok(answer) => serde_json::to_string(&answer).unwrap_or_else(|e| failed(&e)),
        Err(e) => failed(&e),
    }
}
