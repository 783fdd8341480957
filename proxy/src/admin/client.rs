//! The command line's end of the control socket.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
};

use super::Request;
use crate::instance::{InstanceName, Places};

/// No answer from an instance.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("instance `{0}` is not running")]
    NotRunning(InstanceName),
    /// It may not be asked by this user.
    #[error("instance `{0}` can be asked only by the user that runs it; try as root")]
    Forbidden(InstanceName),
    /// It listens, but does not answer.
    #[error("instance `{name}` does not answer on its control socket: {source}")]
    Broken {
        /// Which one.
        name: InstanceName,
        /// What went wrong.
        source: io::Error,
    },
}

/// Asks an instance; the answer is a JSON value.
///
/// # Errors
/// When it is not running, or does not answer in time.
pub fn ask(name: &InstanceName, request: &Request) -> Result<serde_json::Value, AskError> {
    let broken = |source| AskError::Broken { name: name.clone(), source };
    let mut stream = match UnixStream::connect(Places::of(name).socket()) {
        Ok(stream) => stream,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err(AskError::Forbidden(name.clone()));
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(AskError::NotRunning(name.clone()));
        }
        Err(e) => return Err(broken(e)),
    };
    stream.set_read_timeout(Some(request.patience())).map_err(broken)?;
    let line = serde_json::to_string(request).map_err(|e| broken(e.into()))?;
    writeln!(stream, "{line}").map_err(broken)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(broken)?;
    serde_json::from_str(&answer).map_err(|e| broken(e.into()))
}
