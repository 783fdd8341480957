//! A gigabyte each way, every byte compared.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::net::Shutdown;
use std::sync::mpsc;

use sheer_tests::{Family, Lab, PATIENCE, Pattern, Server, Sheer};

const GIB: u64 = 1 << 30;
const UP: u64 = 1;
const DOWN: u64 = 2;

#[test]
fn a_gigabyte_each_way_at_once_over_ipv4() {
    each_way(Family::V4, GIB);
}

#[test]
fn a_gigabyte_each_way_at_once_over_ipv6() {
    each_way(Family::V6, GIB);
}

/// Both directions of one connection at the same time.
fn each_way(family: Family, bytes: u64) {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let (told, heard) = mpsc::channel();
    let server = Server::start(lab.server(), family, 80, move |stream| {
        let mut sending = stream.try_clone()?;
        let sender = std::thread::spawn(move || {
            let sent = Pattern::new(DOWN).send(&mut sending, bytes).map_err(|e| e.to_string());
            sending.shutdown(Shutdown::Write).map_err(|e| e.to_string()).and(sent)
        });
        let received = Pattern::new(UP).receive(&mut &stream).map_err(|e| e.to_string());
        let sent = sender.join().unwrap();
        told.send((received, sent)).map_err(std::io::Error::other)
    });
    let stream = lab.client().connect(server.address());
    let received = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let sent = Pattern::new(UP).send(&mut &stream, bytes).map_err(|e| e.to_string());
            stream.shutdown(Shutdown::Write).unwrap();
            sent
        });
        let received = Pattern::new(DOWN).receive(&mut &stream).map_err(|e| e.to_string());
        assert_eq!(sender.join().unwrap(), Ok(()));
        received
    });
    assert_eq!(received, Ok(bytes), "what the client received");
    assert_eq!(
        heard.recv_timeout(PATIENCE).unwrap(),
        (Ok(bytes), Ok(())),
        "what the server received and sent"
    );
    drop(stream);
    let records = sheer.stop();
    assert_eq!(records.len(), 1);
    assert_eq!((&records[0]["bytes_up"], &records[0]["bytes_down"]), (&bytes.into(), &bytes.into()));
    assert_eq!(records[0]["path"], "spliced", "bulk goes through pipes, not through buffers");
}

#[test]
fn eight_streams_at_once_do_not_mix() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("80").start();
    let server = Server::start(lab.server(), Family::V4, 80, |mut stream| {
        let mut seed = [0];
        std::io::Read::read_exact(&mut stream, &mut seed)?;
        Pattern::new(seed[0].into())
            .send(&mut stream, 64 << 20)
            .map_err(|e| std::io::Error::other(e.to_string()))
    });
    std::thread::scope(|scope| {
        for seed in 1..=8_u8 {
            let (lab, to) = (&lab, server.address());
            scope.spawn(move || {
                let mut stream = lab.client().connect(to);
                std::io::Write::write_all(&mut stream, &[seed]).unwrap();
                let received = Pattern::new(seed.into()).receive(&mut stream);
                assert_eq!(received.map_err(|e| e.to_string()), Ok(64 << 20), "stream {seed}");
            });
        }
    });
    assert_eq!(sheer.stop().len(), 8);
}
