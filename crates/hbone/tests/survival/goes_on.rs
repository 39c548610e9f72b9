//! The product's own parts together: a process carries a connection as a worker of ztunnel does, with a table and a holder, and is killed;
//! the next one goes on with what the holder has. Again and again, in bulk both ways; each byte is compared.

use crate::{
    kills::Load,
    sys::{Process, close_all_but, pair},
};
use karst_hbone::copy::{Counts, Pair, Parts, Watch};
use karst_rt::{
    seqpacket::Channel,
    survive::{
        claim::claim,
        holder::{Holder, Left},
        table::Table,
    },
};
use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    rc::Rc,
    thread,
    time::Duration,
};
use tokio::runtime::{Builder, Runtime};

const KILLS: u64 = 60;
const SOON: Duration = Duration::from_secs(10);

/// Somebody who looks on: nothing is spliced then.
#[derive(Debug)]
struct Looks;

impl Watch for Looks {
    fn is_reading(&self) -> bool {
        true
    }
    fn client_sent(&self, _: &[u8]) {}
    fn server_sent(&self, _: &[u8]) {}
    fn client_ended(&self) {}
    fn server_ended(&self) {}
    fn closed(&self) {}
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_io().enable_time().build()
}

/// What the process does that serves. `says`: it has begun.
fn serve(parts: Parts, orders: OwnedFd, mut says: UnixStream, is_watched: bool) -> io::Result<()> {
    close_all_but(&[parts.client.as_raw_fd(), parts.server.as_raw_fd(), orders.as_raw_fd(), says.as_raw_fd()]);
    let table = Table::new(1)?;
    let _holder = Holder::start(table.as_fd(), &Channel::from_fd(orders)?)?;
    let region = table.region(0).ok_or(io::ErrorKind::NotFound)?;
    runtime()?.block_on(async {
        let counts = Counts::default();
        if is_watched {
            counts.show_to(Rc::new(Looks));
        }
        let mut pair = Pair::resume(parts)?;
        pair.enter(&region, b"whose");
        says.write_all(b"!")?;
        pair.carry(&counts).await
    })
}

/// A process that serves, once it has begun, and the supervisor's end of its orders.
fn start(parts: Parts, is_watched: bool) -> (Process, Channel) {
    let (supervisor, orders) = Channel::pair().unwrap();
    let (mut hears, says) = UnixStream::pair().unwrap();
    // Its memory is a copy of this one's, in which other threads may be in the middle of something: it needs the allocator, which is
    // made for that, and nothing else that others have.
    let process = Process::fork(move || i32::from(serve(parts, orders, says, is_watched).is_err()));
    hears.set_read_timeout(Some(SOON)).unwrap();
    hears.read_exact(&mut [0]).unwrap();
    (process, supervisor)
}

fn killed_again_and_again(is_watched: bool) {
    let runtime = runtime().unwrap();
    let ((client, a), (b, app)) = (pair(), pair());
    let up = Load::start(client.try_clone().unwrap(), app.try_clone().unwrap());
    let down = Load::start(app, client);
    let mut parts = Parts { client: a.into(), server: b.into(), up: Default::default(), down: Default::default() };
    let mut in_pipes = 0;
    for number in 0..KILLS {
        let (process, supervisor) = start(parts, is_watched);
        // From when it has just begun to some ms of bulk.
        thread::sleep(Duration::from_micros(number * 797 % 4000));
        process.kill();
        let left = Left::of(&supervisor).expect("it has a holder");
        let claimed = runtime.block_on(claim(left.as_fd().try_clone_to_owned().unwrap(), SOON)).unwrap();
        assert_eq!((claimed.connections.len(), claimed.lost), (1, 0));
        let [one] = <[_; 1]>::try_from(claimed.connections).unwrap();
        assert_eq!(one.note, b"whose");
        let settled = one.settle().unwrap_or_else(|e| panic!("kill {number}: {e}")).expect("it is not over");
        in_pipes += u64::from(!settled.up.rest.is_empty() || !settled.down.rest.is_empty());
        parts = settled.into();
    }
    for load in [&up, &down] {
        load.stop();
    }
    let (process, supervisor) = start(parts, is_watched);
    assert_eq!(process.end(), Some(0), "both directions have come to their end");
    Left::of(&supervisor).expect("it has a holder").end();
    let carried = [up.end(), down.end()].map(|(sent, received)| {
        assert_eq!(sent, received);
        sent >> 20
    });
    println!("{KILLS} kills, {carried:?} MiB, {in_pipes} with something in a pipe");
    assert!(is_watched || in_pipes > 0, "none was killed where it matters");
}

#[test]
fn what_is_spliced_goes_on_in_the_next_process() {
    killed_again_and_again(false);
}

#[test]
fn what_is_looked_at_goes_on_in_the_next_process() {
    killed_again_and_again(true);
}

/// An end that was passed on is not passed on again, and what the other side still says comes.
#[test]
fn what_is_half_closed_goes_on_in_the_next_process() {
    let runtime = runtime().unwrap();
    let ((mut client, a), (b, mut app)) = (pair(), pair());
    for end in [&client, &app] {
        end.set_read_timeout(Some(SOON)).unwrap();
    }
    client.write_all(b"a question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut parts = Parts { client: a.into(), server: b.into(), up: Default::default(), down: Default::default() };
    for number in 0..3 {
        let (process, supervisor) = start(parts, false);
        if number == 0 {
            let mut asked = String::new();
            app.read_to_string(&mut asked).unwrap();
            assert_eq!(asked, "a question");
        }
        app.write_all(b"some of the answer").unwrap();
        let mut heard = [0; 18];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"some of the answer");
        process.kill();
        let left = Left::of(&supervisor).expect("it has a holder");
        let mut claimed = runtime.block_on(claim(left.as_fd().try_clone_to_owned().unwrap(), SOON)).unwrap();
        let settled = claimed.connections.remove(0).settle().unwrap().expect("it is not over");
        assert!(settled.up.ended && !settled.down.ended);
        parts = settled.into();
    }
    let (process, supervisor) = start(parts, false);
    app.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert_eq!(process.end(), Some(0));
    Left::of(&supervisor).expect("it has a holder").end();
}
