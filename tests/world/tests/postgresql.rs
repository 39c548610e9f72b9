//! A real database over rollouts of ztunnel (issue 18): Debian's PostgreSQL in a pod, and its own client in a pod of the other node. A
//! transaction and two copies of 200 MB last as long as the rollouts. Run by `cargo xtask soak`, which installs the package.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use aws_lc_rs::digest::{Context, SHA256};
use karst_world::{Options, Pod, PodSpec, World, kill, net, wait_for};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How many ztunnels are replaced.
const ROLLOUTS: usize = 10;
/// Rows of each copy, of a kilobyte.
const ROWS: usize = 200_000;
/// So many rows at a time, and a pause: 5 MB/s, so that bytes are under way whenever a ztunnel leaves.
const AT_A_TIME: usize = 100;
const PAUSE: Duration = Duration::from_millis(20);
const DRAIN: Duration = Duration::from_secs(59);
const BOUND: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: app, labels: {istio.io/use-waypoint: waypoint}}\nspec: {clusterIP: 10.96.0.30, selector: {app: db}, ports: [{name: tcp, port: 5432}]}\n";

/// Where Debian has the programs of its newest version.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|version| version.file_name().to_str()?.parse::<u32>().ok()).max();
    let newest = newest.expect("PostgreSQL is not there: cargo xtask soak installs Debian's package postgresql");
    format!("/usr/lib/postgresql/{newest}/bin").into()
}

/// A server in a pod.
struct Database {
    process: Child,
    programs: PathBuf,
    pod: Pod,
}

impl Database {
    fn start(w: &World, pod: &Pod) -> Self {
        let (programs, directory) = (programs(), w.dir.join("postgresql"));
        fs::create_dir(&directory).unwrap();
        let data = directory.display().to_string();
        net::run("chown", &["postgres:", &data]).unwrap();
        // Not as root: it refuses that.
        let own = |program: &str| {
            let mut command = pod.command("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(programs.join(program));
            command.args(["-D", &data]).current_dir("/").stdin(Stdio::null());
            command
        };
        let made =
            own("initdb").args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]).output();
        let made = made.unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut rules = fs::OpenOptions::new().append(true).open(directory.join("pg_hba.conf")).unwrap();
        rules.write_all(b"host all all all trust\n").unwrap();
        let log = fs::File::create(w.dir.join("logs/postgresql.log")).unwrap();
        let process = own("postgres")
            .args(["-c", "listen_addresses=*", "-c", "unix_socket_directories=", "-c", "fsync=off"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let database = Self { process, programs, pod: pod.clone() };
        wait_for("PostgreSQL", Duration::from_secs(30), || {
            let asked = database.psql(pod, "127.0.0.1").args(["-c", "SELECT 1"]).output().unwrap();
            asked.status.success().then_some(())
        });
        database
    }

    /// Its own client. Plaintext, as inside of a mesh.
    fn psql(&self, from: &Pod, host: &str) -> Command {
        let mut psql = from.command(self.programs.join("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h", host]);
        psql.env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable").stdin(Stdio::null());
        psql
    }

    /// What is answered within the server's pod, past the mesh.
    fn ask(&self, sql: &str) -> String {
        let out = self.psql(&self.pod, "127.0.0.1").args(["-c", sql]).output().unwrap();
        assert!(out.status.success(), "{sql}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().into()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Its fast shutdown: sessions are ended.
        kill(self.process.id(), libc::SIGINT);
        let _ = self.process.wait();
    }
}

/// A session with one transaction.
struct Transaction {
    psql: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Transaction {
    fn begin(mut psql: Command) -> Self {
        let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (psql.stdin.take().unwrap(), BufReader::new(psql.stdout.take().unwrap()));
        let mut own = Self { psql, to, from };
        assert_eq!(own.say("BEGIN; SELECT 'begun';"), "begun");
        own
    }

    /// The line that is answered.
    fn say(&mut self, sql: &str) -> String {
        writeln!(self.to, "{sql}").unwrap();
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim().into()
    }

    fn insert(&mut self, n: usize) {
        let answer = self.say(&format!("INSERT INTO long VALUES ({n}, pg_backend_pid()) RETURNING n;"));
        assert_eq!(answer, n.to_string(), "the session has ended");
    }

    fn commit(mut self) {
        assert_eq!(self.say("COMMIT; SELECT 'committed';"), "committed");
        drop(self.to);
        assert!(self.psql.wait().unwrap().success());
    }
}

/// A row, as COPY writes it.
fn row(n: usize) -> String {
    let digits = format!("{:016x}", (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    format!("{n}\t{}\n", digits.repeat(62))
}

fn all_of(table: &str) -> String {
    format!("COPY (SELECT n, body FROM {table} ORDER BY n) TO STDOUT")
}

/// After so many rows of a copy: it goes on evenly, and is not over before the rollouts are.
fn pace(rows: usize, rollouts: &AtomicUsize) {
    if rows.is_multiple_of(AT_A_TIME) {
        thread::sleep(PAUSE);
    }
    while rows > ROWS * (rollouts.load(Relaxed) + 1) / (ROLLOUTS + 1) {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Writes a table over rollouts; the hash of what was written.
fn copy_in(mut psql: Command, rollouts: &Arc<AtomicUsize>) -> JoinHandle<Vec<u8>> {
    let mut psql = psql.args(["-c", "COPY inward FROM STDIN"]).stdin(Stdio::piped()).spawn().unwrap();
    let rollouts = rollouts.clone();
    thread::spawn(move || {
        let (mut to, mut hash) = (psql.stdin.take().unwrap(), Context::new(&SHA256));
        for n in 1..=ROWS {
            let row = row(n);
            hash.update(row.as_bytes());
            to.write_all(row.as_bytes()).expect("COPY FROM STDIN goes on");
            pace(n, &rollouts);
        }
        drop(to);
        assert!(psql.wait().unwrap().success(), "COPY FROM STDIN");
        hash.finish().as_ref().to_vec()
    })
}

/// Reads a table; the hash of what was read. `rollouts`: over these.
fn copy_out(mut psql: Command, table: &str, rollouts: Option<&Arc<AtomicUsize>>) -> JoinHandle<Vec<u8>> {
    let mut psql = psql.args(["-c", &all_of(table)]).stdout(Stdio::piped()).spawn().unwrap();
    let rollouts = rollouts.cloned();
    thread::spawn(move || {
        let (mut from, mut hash) = (BufReader::new(psql.stdout.take().unwrap()), Context::new(&SHA256));
        let (mut rows, mut row) = (0, vec![]);
        while from.read_until(b'\n', &mut row).unwrap() > 0 {
            hash.update(&row);
            row.clear();
            rows += 1;
            if let Some(rollouts) = &rollouts {
                pace(rows, rollouts);
            }
        }
        assert!(psql.wait().unwrap().success() && rows == ROWS, "COPY TO STDOUT: {rows} rows");
        hash.finish().as_ref().to_vec()
    })
}

fn over_rollouts(through_waypoint: bool) {
    let ztunnel_env = vec![("TERMINATION_GRACE_PERIOD_SECONDS".into(), "64".into())];
    let mut w = World::start(Options { ztunnel_env, ..Options::default() }).unwrap();
    w.namespace("app", true);
    if through_waypoint {
        w.apply("db", BOUND);
        w.waypoint("app", "waypoint", 1, &[]);
    }
    let (a, db) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "db", 1)));
    let database = Database::start(&w, &db);
    let host = if through_waypoint { "10.96.0.30".to_string() } else { db.ip.to_string() };
    let psql = || database.psql(&a, &host);
    database.ask("CREATE TABLE long (n int, pid int)");
    database.ask("CREATE TABLE inward (n int PRIMARY KEY, body text)");
    database.ask(&format!(
        "CREATE TABLE outward AS SELECT n, repeat(md5(n::text), 31) AS body FROM generate_series(1, {ROWS}) n"
    ));
    database.ask("ALTER TABLE outward ADD PRIMARY KEY (n)");
    let done = Arc::new(AtomicUsize::new(0));
    let (inward, outward) = (copy_in(psql(), &done), copy_out(psql(), "outward", Some(&done)));
    let mut transaction = Transaction::begin(psql());
    let (mut ports, mut slowest) = ([15000; 2], Duration::ZERO);
    for round in 0..ROLLOUTS {
        transaction.insert(round);
        let node = round % 2;
        ports[node] = if ports[node] == 15000 { 16000 } else { 15000 };
        let mut old = w.replace_ztunnel(node, ports[node]);
        let began = Instant::now();
        old.wait().unwrap();
        slowest = slowest.max(began.elapsed());
        done.fetch_add(1, Relaxed);
    }
    transaction.insert(ROLLOUTS);
    assert!(!inward.is_finished() && !outward.is_finished(), "the copies were over before the rollouts");
    transaction.commit();
    let (inward, outward) = (inward.join().unwrap(), outward.join().unwrap());
    let within = |table| copy_out(database.psql(&db, "127.0.0.1"), table, None).join().unwrap();
    let whole = [within("inward") == inward, within("outward") == outward];
    let long = database.ask("SELECT count(*), count(DISTINCT pid), count(DISTINCT xmin::text) FROM long");
    println!(
        "PostgreSQL: rollouts={ROLLOUTS} through_waypoint={through_waypoint} rows_each_way={ROWS} same_bytes={whole:?} transaction={long} slowest_leave_ms={}",
        slowest.as_millis()
    );
    assert_eq!(whole, [true; 2], "other rows have come than were sent");
    assert_eq!(long, format!("{}|1|1", ROLLOUTS + 1), "rows, sessions and transactions");
    assert!(slowest < DRAIN / 4, "a ztunnel has waited for its drain: {slowest:?}");
}

#[test]
#[ignore = "soak: about two minutes; Debian's PostgreSQL"]
fn soak_postgresql_survives_rollouts() {
    over_rollouts(false);
}

#[test]
#[ignore = "soak: about two minutes; Debian's PostgreSQL"]
fn soak_postgresql_survives_rollouts_through_a_waypoint() {
    over_rollouts(true);
}
