use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{Load, MESSAGE};

/// Opens the connections, uses each once so that it reaches the server, says `ready`, and holds them until stdin ends.
pub(super) fn run(load: &Load) -> Result<()> {
    let mut streams = Vec::with_capacity(load.connections);
    for number in 0..load.connections {
        let stream = open(load).with_context(|| format!("connection {number} to {}", load.to))?;
        streams.push(stream);
    }
    println!("ready");
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}

fn open(load: &Load) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(load.to)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&[0x5a; MESSAGE])?;
    stream.read_exact(&mut [0; MESSAGE])?;
    Ok(stream)
}
