//! The instance's end of the control socket.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, rc::Rc, time::Duration};

use futures_util::future::LocalBoxFuture;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    task::spawn_local,
    time::timeout,
};

use super::Request;

/// Answers a request with a line of JSON.
pub type Handler = Rc<dyn Fn(Request) -> LocalBoxFuture<'static, String>>;

/// A request is a line with perhaps a path in it; whoever sends more, or takes longer, is not one of ours.
const MAX_REQUEST: u64 = 16 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the control socket, readable by its owner alone.
///
/// # Errors
/// When the socket cannot be made.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    // A socket that a dead process left refuses connections; the instance's lock says that it is dead.
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers on the control socket for as long as the runtime runs; to be called on a `LocalSet`.
pub fn serve(listener: UnixListener, handler: Handler) {
    spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let handler = Rc::clone(&handler);
                    spawn_local(async move {
                        if let Err(e) = answer(stream, handler).await {
                            log::debug!("control socket: {e}");
                        }
                    });
                }
                Err(e) => {
                    log::warn!("control socket: accepting: {e}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
}

async fn answer(stream: UnixStream, handler: Handler) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    timeout(PATIENCE, BufReader::new(read.take(MAX_REQUEST)).read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Request>(line.trim()) {
        Ok(request) => handler(request).await,
        Err(_) => serde_json::json!({ "error": "no such request" }).to_string(),
    };
    timeout(PATIENCE, write.write_all(format!("{answer}\n").as_bytes())).await?
}
