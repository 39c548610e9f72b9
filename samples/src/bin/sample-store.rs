//! A small store of four services, to try releases with: `storefront` shows what `catalog` has, and sells by `checkout`, which asks
//! `catalog` for prices and `payments` for the money. `shopper` visits and buys all the time, and says what it saw.

use anyhow::Result;
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use samples::Serve;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// One of the services of the store.
#[derive(Parser)]
#[command(name = "sample-store", version)]
struct Cli {
    /// Which.
    role: Role,
    #[command(flatten)]
    serve: Serve,
    /// Of a hundred requests so many are answered 500: a release that should not have been made.
    #[arg(long, default_value_t = 0)]
    faulty: u64,
    /// Visits of the shopper in a second.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rate: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Storefront,
    Catalog,
    Checkout,
    Payments,
    Shopper,
}

/// Product and price, cents.
const PRODUCTS: [(&str, u64); 3] = [("kettle", 3490), ("lamp", 1999), ("chair", 8900)];
/// Port of all services.
const PORT: u16 = 8080;
/// Patience with another service.
const PATIENCE: Duration = Duration::from_secs(3);

struct Store {
    role: Role,
    me: Serve,
    faulty: u64,
    requests: AtomicU64,
    /// What the shopper has seen: sales, failures.
    seen: [AtomicU64; 2],
}

type Answer = Response<Full<Bytes>>;

#[tokio::main]
async fn main() -> Result<()> {
    let c = Cli::parse();
    let l = c.serve.listener().await?;
    let (requests, seen) = (AtomicU64::new(0), Default::default());
    let store = Arc::new(Store { role: c.role, me: c.serve, faulty: c.faulty, requests, seen });
    if c.role == Role::Shopper {
        tokio::spawn(shop(store.clone(), c.rate));
    }
    let answer = move |_, r| {
        let store = store.clone();
        async move { store.answer(r).await }
    };
    match samples::http(l, answer).await? {}
}

/// Buys one thing after the other.
async fn shop(store: Arc<Store>, rate: u64) {
    let mut turn = tokio::time::interval(Duration::from_micros(1_000_000 / rate));
    for (name, _) in PRODUCTS.iter().cycle() {
        turn.tick().await;
        let store = store.clone();
        tokio::spawn(async move {
            let sold = call(Method::POST, "storefront", &format!("/buy/{name}")).await;
            let fine = matches!(&sold, Ok((200, v)) if v["paid"].is_u64());
            store.seen[usize::from(!fine)].fetch_add(1, Relaxed);
            if !fine {
                println!("not sold: {sold:?}");
            }
        });
    }
}

async fn call(method: Method, service: &str, path: &str) -> Result<(u16, Value)> {
    let r = Request::builder().method(method).uri(path);
    tokio::time::timeout(PATIENCE, samples::ask(service, PORT, r)).await?
}

impl Store {
    async fn answer(&self, r: Request<Incoming>) -> Answer {
        let path = r.uri().path().trim_matches('/').to_string();
        let parts: Vec<&str> = path.split('/').collect();
        if parts == ["health"] {
            return of(200, &json!({ "status": "healthy" }));
        }
        // Evenly: of a hundred in a row so many fail.
        let n = self.requests.fetch_add(1, Relaxed);
        if (n * self.faulty) % 100 < self.faulty && self.faulty > 0 {
            return of(500, &json!({ "error": format!("{} {} is broken", self.me.name, self.me.release) }));
        }
        let (status, v) = match (self.role, &parts[..]) {
            (Role::Shopper, _) => {
                (200, json!({ "sold": self.seen[0].load(Relaxed), "failed": self.seen[1].load(Relaxed) }))
            }
            (Role::Catalog, ["products"]) => {
                (200, PRODUCTS.iter().map(|(n, p)| json!({ "name": n, "price": p })).collect())
            }
            (Role::Catalog, ["products", name]) => match PRODUCTS.iter().find(|(n, _)| n == name) {
                Some((n, p)) => (200, json!({ "name": n, "price": p })),
                None => (404, json!({ "error": format!("there is no {name}") })),
            },
            (Role::Payments, ["pay", cents]) => match cents.parse::<u64>() {
                Ok(c) => (200, json!({ "paid": c })),
                Err(_) => (400, json!({ "error": "how much, in cents?" })),
            },
            (Role::Checkout, ["buy", name]) => self.sell(name).await,
            (Role::Storefront, ["buy", name]) => {
                passed_on(call(Method::POST, "checkout", &format!("/buy/{name}")).await)
            }
            (Role::Storefront, [""]) => passed_on(call(Method::GET, "catalog", "/products").await),
            _ => (404, json!({ "error": "not found" })),
        };
        of(status, &v)
    }

    async fn sell(&self, name: &str) -> (u16, Value) {
        let (status, product) = passed_on(call(Method::GET, "catalog", &format!("/products/{name}")).await);
        let Some(price) = product["price"].as_u64().filter(|_| status == 200) else { return (status, product) };
        let (status, mut v) = passed_on(call(Method::POST, "payments", &format!("/pay/{price}")).await);
        v["release"] = json!(self.me.release);
        (status, v)
    }
}

/// What another service said, or that it said nothing.
fn passed_on(r: Result<(u16, Value)>) -> (u16, Value) {
    r.unwrap_or_else(|e| (502, json!({ "error": e.to_string() })))
}

fn of(status: u16, v: &Value) -> Answer {
    let mut a = Response::new(Full::new(format!("{v}\n").into()));
    *a.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    a.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    a
}
