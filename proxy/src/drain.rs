//! The stages of leaving: live, draining, forced. They only go forward.

use std::fmt;

use serde::Serialize;

/// How far the proxy is on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainStage {
    #[default]
    Running,
    /// Accepts nothing more, lets live connections finish.
    Draining,
    /// Resets what is left.
    Forced,
}

impl fmt::Display for DrainStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Forced => "forced",
        })
    }
}
