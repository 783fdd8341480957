use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context, Result};

use super::Seen;

/// Answers HTTP requests on each address with the addresses that it sees, until it is killed.
///
/// # Errors
/// When an address cannot be listened on.
pub fn run(addresses: &[SocketAddr]) -> Result<()> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        listeners.push(thread::spawn(move || accept(&listener)));
    }
    println!("ready");
    for listener in listeners {
        // Ends only by a panic, which has told its reason.
        let _ = listener.join();
    }
    Ok(())
}

fn accept(listener: &TcpListener) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => drop(thread::spawn(move || converse(&stream))),
            Err(error) => eprintln!("accept: {error}"),
        }
    }
}

/// A client that leaves early is none of the server's concern.
fn converse(stream: &TcpStream) {
    if let Err(error) = answer_all(stream) {
        eprintln!("{error}");
    }
}

fn answer_all(mut stream: &TcpStream) -> io::Result<()> {
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    let mut lines = BufReader::new(stream).lines();
    while let Some(request) = lines.next().transpose()? {
        while lines.next().transpose()?.is_some_and(|header| !header.is_empty()) {}
        let seen = Seen { local, peer, text: request };
        println!("{}", serde_json::to_string(&seen)?);
        let body = format!("Hello {peer}, this is {local}.\n");
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
    }
    Ok(())
}
