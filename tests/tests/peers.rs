//! Programs that people use: each must work, and its server must log the client's own address.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has to fail")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use sheer_tests::{Family, Host, Lab, PATIENCE, Process, Sheer, wait_until};

fn run(mut command: Command) -> String {
    let output: Output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

/// Address and port as they stand in a URL.
fn url_host(host: &Host, family: Family) -> String {
    match family {
        Family::V4 => host.v4().to_string(),
        Family::V6 => format!("[{}]", host.v6()),
    }
}

fn listens(host: &Host, port: u16) {
    wait_until(&format!("port {port} listens"), PATIENCE, || {
        host.sh("ss -Hltn").lines().any(|line| line.contains(&format!(":{port} "))).then_some(())
    });
}

fn nginx(host: &Host, directory: &Path) -> Process {
    let at = directory.display();
    let configuration = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n\
           log_format seen '$remote_addr $status $body_bytes_sent'; access_log {at}/access.log seen;\n\
           client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at}; uwsgi_temp_path {at};\n\
           scgi_temp_path {at};\n\
           server {{ listen 80; listen [::]:80; root {at}/www; }}\n\
         }}\n"
    );
    fs::create_dir_all(directory.join("www")).unwrap();
    fs::write(directory.join("www/hello"), "hello\n").unwrap();
    fs::write(directory.join("www/big"), vec![b'x'; 20_000_000]).unwrap();
    fs::write(directory.join("nginx.conf"), configuration).unwrap();
    let mut command = host.command("nginx");
    command.args(["-c", &format!("{at}/nginx.conf"), "-e", &format!("{at}/error.log")]);
    let server = Process::start("nginx (package nginx-light)", command);
    listens(host, 80);
    server
}

#[test]
fn curl_fetches_from_nginx_which_logs_the_clients_own_address() {
    let lab = Lab::new();
    let directory = tempfile::tempdir().unwrap();
    let _server = nginx(lab.server(), directory.path());
    let sheer = Sheer::on(&lab).tcp("80").start();
    for family in Family::BOTH {
        let url = format!("http://{}", url_host(lab.server(), family));
        let mut small = lab.client().command("curl");
        small.args(["-sS", "--fail", "-g", "--max-time", "20", &format!("{url}/hello")]);
        assert_eq!(run(small), "hello\n");
        let mut big = lab.client().command("curl");
        big.args([
            "-sS",
            "--fail",
            "-g",
            "--max-time",
            "20",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download} %{remote_ip}",
        ]);
        big.arg(format!("{url}/big"));
        assert_eq!(run(big), format!("20000000 {}", lab.server().ip(family)));
        let log = wait_until("nginx has logged both requests", PATIENCE, || {
            let log = fs::read_to_string(directory.path().join("access.log")).ok()?;
            let own =
                log.lines().filter(|line| line.starts_with(&lab.client().ip(family).to_string())).count();
            (own == 2).then_some(log)
        });
        assert!(log.contains(" 200 20000000"), "{log}");
    }
    assert_eq!(sheer.stop().len(), 4);
}

#[test]
fn curl_keeps_one_connection_for_many_requests() {
    let lab = Lab::new();
    let directory = tempfile::tempdir().unwrap();
    let _server = nginx(lab.server(), directory.path());
    let sheer = Sheer::on(&lab).tcp("80").start();
    let mut many = lab.client().command("curl");
    let url = format!("http://{}/hello?[1-50]", lab.server().v4());
    many.args(["-sS", "--fail", "--max-time", "20", &url]);
    assert_eq!(run(many), "hello\n".repeat(50));
    assert_eq!(sheer.stop().len(), 1);
}

#[test]
fn iperf3_runs_both_ways_and_its_server_names_the_client() {
    let lab = Lab::new();
    let sheer = Sheer::on(&lab).tcp("5201").start();
    for family in Family::BOTH {
        let mut command = lab.server().command("iperf3");
        command.args(["--server", "--forceflush"]);
        let server = Process::start("iperf3 (package iperf3)", command);
        listens(lab.server(), 5201);
        for direction in [&[][..], &["--reverse"], &["--parallel", "4"]] {
            let mut client = lab.client().command("iperf3");
            client.args(["--client", &lab.server().ip(family).to_string(), "--bytes", "50M"]).args(direction);
            run(client);
        }
        let accepted = format!("Accepted connection from {},", lab.client().ip(family));
        wait_until("iperf3 has logged three tests of this client", PATIENCE, || {
            let seen = server.stdout().iter().filter(|line| line.starts_with(&accepted)).count();
            (seen == 3).then_some(())
        });
    }
    sheer.stop();
}

#[test]
fn ssh_logs_in_and_is_told_its_own_address() {
    let lab = Lab::new();
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().display().to_string();
    let _server = sshd(lab.server(), &at);
    let sheer = Sheer::on(&lab).tcp("2222").start();
    for family in Family::BOTH {
        let mut client = lab.client().command("ssh");
        client.args(["-F", "none", "-p", "2222", "-i", &format!("{at}/user"), "-o", "BatchMode=yes"]);
        client.args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        ]);
        client.args(["-l", "root", &lab.server().ip(family).to_string(), "echo $SSH_CLIENT"]);
        let told = run(client);
        assert!(told.starts_with(&format!("{} ", lab.client().ip(family))), "{family}: {told}");
    }
    assert_eq!(sheer.stop().len(), 2);
}

fn sshd(host: &Host, at: &str) -> Process {
    for key in ["host", "user"] {
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &format!("{at}/{key}")]);
        run(keygen);
    }
    fs::copy(format!("{at}/user.pub"), format!("{at}/authorized")).unwrap();
    // sshd insists on it, and only the package's service makes it.
    fs::create_dir_all("/run/sshd").unwrap();
    let mut command = host.command("/usr/sbin/sshd");
    command.args(["-D", "-e", "-f", "/dev/null", "-p", "2222", "-h", &format!("{at}/host")]);
    let authorized = format!("AuthorizedKeysFile={at}/authorized");
    let pid = format!("PidFile={at}/pid");
    for option in [&*authorized, &*pid, "StrictModes=no", "UsePAM=no", "PermitRootLogin=yes"] {
        command.args(["-o", option]);
    }
    let server = Process::start("sshd (package openssh-server)", command);
    listens(host, 2222);
    server
}
