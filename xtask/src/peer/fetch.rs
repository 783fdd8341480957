use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::Seen;

const PATIENCE: Duration = Duration::from_secs(5);

/// Asks `server` for `/`, prints what was seen, and holds the connection open until stdin ends.
///
/// # Errors
/// When there is no answer, or one that is not a success.
pub fn run(server: SocketAddr) -> Result<()> {
    let stream = TcpStream::connect_timeout(&server, PATIENCE)
        .with_context(|| format!("cannot connect to {server}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = ask(&stream, server).with_context(|| format!("no answer from {server}"))?;
    let seen = Seen { local: stream.local_addr()?, peer: stream.peer_addr()?, text: body };
    println!("{}", serde_json::to_string(&seen)?);
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}

fn ask(mut stream: &TcpStream, server: SocketAddr) -> Result<String> {
    write!(stream, "GET / HTTP/1.1\r\nHost: {server}\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let mut line = String::new();
    answer.read_line(&mut line)?;
    if !line.starts_with("HTTP/1.1 200") {
        bail!("it said {line:?}");
    }
    let mut length = 0;
    while line.trim_end() != "" {
        line.clear();
        answer.read_line(&mut line)?;
        if let Some(value) = line.strip_prefix("Content-Length:") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    answer.read_exact(&mut body)?;
    Ok(String::from_utf8_lossy(&body).trim_end().to_owned())
}
