// SPDX-License-Identifier: Apache-2.0
// As name_client.py. Arguments: rounds, pause in seconds, port, hosts.
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::{env, process, thread, time::Duration};

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let rounds: usize = arguments[1].parse().unwrap();
    let pause: f64 = arguments[2].parse().unwrap();
    let port: u16 = arguments[3].parse().unwrap();
    let hosts = &arguments[4..];
    let mut bytes = vec![0usize; hosts.len()];
    for turn in 0..rounds {
        for (i, host) in hosts.iter().enumerate() {
            let size = 1000 + 10 * turn + i;
            let mut there = TcpStream::connect((host.as_str(), port)).unwrap();
            there.write_all(&vec![0u8; size]).unwrap();
            there.shutdown(Shutdown::Write).unwrap();
            let mut received = Vec::new();
            there.read_to_end(&mut received).unwrap();
            assert_eq!(received.len(), size);
            bytes[i] += size;
        }
        thread::sleep(Duration::from_secs_f64(pause));
    }
    let told: Vec<String> =
        hosts.iter().zip(&bytes).map(|(host, size)| format!("\"{host}\": [{rounds}, {size}]")).collect();
    println!("{{\"pid\": {}, \"hosts\": {{{}}}}}", process::id(), told.join(", "));
}
