//! An application as the mesh must take it: statically linked, and it knows nothing of the mesh. Usage: `static_client V4:PORT
//! [V6]:PORT MILLISECONDS`. Connects in turn to both, sends a marker, wants it back, and prints the counts.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let end = Instant::now() + Duration::from_millis(args[2].parse().expect("milliseconds"));
    let (mut ok, mut failed) = (0u32, 0u32);
    while Instant::now() < end {
        for to in &args[..2] {
            let once = || -> std::io::Result<()> {
                let mut s = TcpStream::connect(to)?;
                s.set_read_timeout(Some(Duration::from_secs(5)))?;
                s.write_all(b"static-client-marker")?;
                s.read_exact(&mut [0; 20])
            };
            match once() {
                Ok(()) => ok += 1,
                Err(e) => {
                    failed += 1;
                    println!("{to}: {e}");
                }
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("ok={ok} failed={failed}");
}
