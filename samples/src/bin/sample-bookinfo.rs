//! A book shop of four services, the exercise ground that users of Istio know as bookinfo: same service names, labels, ports,
//! paths, answers and habits (timeouts, one retry, what is forwarded, how each degrades when another is down), our own program.
//!
//! `productpage` asks `details` and `reviews`; `reviews` v2 and v3 ask `ratings` (black and red stars), v1 does not.

use anyhow::Result;
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, Response, StatusCode, body::Incoming, header};
use samples::Serve;
use serde_json::{Value, json};
use std::{fmt::Write, time::Duration};
use tokio::time::timeout;

/// One of the services of the book shop.
#[derive(Parser)]
#[command(name = "sample-bookinfo", version)]
struct Cli {
    /// Which.
    role: Role,
    #[command(flatten)]
    serve: Serve,
    /// Where the others are: host names are prefixed by the service's name and this is appended, as in details:9080.
    #[arg(long, env = "SERVICES_PORT", default_value_t = 9080)]
    port: u16,
    /// Appended to the names of the others, as .bookinfo.svc.
    #[arg(long, env = "SERVICES_DOMAIN", default_value = "")]
    domain: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Productpage,
    Details,
    Reviews,
    Ratings,
}

/// What is passed on with each call: tracing, the user, and what routing exercises match on.
const FORWARDED: [&str; 16] = [
    "x-request-id",
    "x-ot-span-context",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "traceparent",
    "tracestate",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "end-user",
    "user-agent",
];
/// productpage's patience with reviews, for each of its two attempts, and with details.
const PAGE_TIMEOUT: Duration = Duration::from_secs(3);
/// reviews' patience with ratings: more than an injected fault of 7 s, so that productpage's own timeout shows first.
const RATINGS_TIMEOUT: Duration = Duration::from_secs(10);
const TITLE: &str = "Simple Bookstore App";

struct Shop {
    role: Role,
    me: Serve,
    port: u16,
    domain: String,
}

type Answer = Response<Full<Bytes>>;

#[tokio::main]
async fn main() -> Result<()> {
    let c = Cli::parse();
    let l = c.serve.listener().await?;
    let shop = std::sync::Arc::new(Shop { role: c.role, me: c.serve, port: c.port, domain: c.domain });
    let answer = move |_, r| {
        let shop = shop.clone();
        async move { shop.answer(r).await }
    };
    match samples::http(l, answer).await? {}
}

fn of(status: u16, content_type: &'static str, body: String) -> Answer {
    let mut a = Response::new(Full::new(body.into()));
    *a.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    a.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    a
}

fn json_of(status: u16, v: &Value) -> Answer {
    of(status, "application/json", v.to_string())
}

impl Shop {
    async fn answer(&self, r: Request<Incoming>) -> Answer {
        let path = r.uri().path().to_string();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        println!("{} {} {path}", self.me.release, r.method());
        let mut headers = forwarded(r.headers());
        if let Some(user) = session(r.headers()) {
            headers.insert("end-user", user);
        }
        match (self.role, parts.as_slice()) {
            (_, ["health"]) => json_of(200, &json!({ "status": format!("{} is healthy", self.me.name) })),
            (Role::Details, ["details", id]) => match id.parse::<u64>() {
                Ok(id) => json_of(200, &details(id)),
                Err(_) => json_of(400, &json!({ "error": "please provide numeric product id" })),
            },
            (Role::Ratings, ["ratings", id]) => match id.parse::<u64>() {
                Ok(id) => json_of(200, &json!({ "id": id, "ratings": { "Reviewer1": 5, "Reviewer2": 4 } })),
                Err(_) => json_of(400, &json!({ "error": "please provide numeric product ID" })),
            },
            (Role::Reviews, ["reviews", id]) => self.reviews(id, &headers).await,
            (Role::Productpage, [""] | ["index.html"]) => {
                of(200, "text/html; charset=utf-8", page("", "<p><a href=\"/productpage?u=normal\">The shop</a></p>"))
            }
            (Role::Productpage, ["productpage"]) => self.productpage(&headers).await,
            (Role::Productpage, ["login"]) => {
                let body = r.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                let body = String::from_utf8_lossy(&body).into_owned();
                let user = body.split('&').find_map(|p| p.strip_prefix("username=")).unwrap_or_default();
                let name: String = user.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
                redirect(&format!("user={name}; Path=/; HttpOnly"))
            }
            (Role::Productpage, ["logout"]) => redirect("user=; Path=/; Max-Age=0"),
            (Role::Productpage, ["api", "v1", "products"]) => {
                json_of(200, &json!([{ "id": 0, "title": "The Comedy of Errors" }]))
            }
            (Role::Productpage, ["api", "v1", "products", id]) => {
                let (s, v) = self.get("details", &format!("/details/{id}"), &headers, PAGE_TIMEOUT, 1).await;
                json_of(s, &v)
            }
            (Role::Productpage, ["api", "v1", "products", id, what @ ("reviews" | "ratings")]) => {
                let (s, v) = self.get(what, &format!("/{what}/{id}"), &headers, PAGE_TIMEOUT, 2).await;
                json_of(s, &v)
            }
            _ => of(404, "text/plain", "not found\n".into()),
        }
    }

    /// Asks another service; a status of its own or 500 and an error.
    async fn get(&self, service: &str, path: &str, h: &HeaderMap, patience: Duration, tries: u32) -> (u16, Value) {
        let mut last = (500, json!({ "error": "no answer" }));
        for _ in 0..tries {
            match timeout(patience, self.call(service, path, h)).await {
                Ok(Ok((200, v))) => return (200, v),
                Ok(Ok(other)) => last = other,
                Ok(Err(e)) => last = (500, json!({ "error": e.to_string() })),
                Err(_) => last = (500, json!({ "error": format!("no answer within {} s", patience.as_secs()) })),
            }
        }
        println!("{service}{path}: {} {}", last.0, last.1["error"]);
        last
    }

    async fn call(&self, service: &str, path: &str, h: &HeaderMap) -> Result<(u16, Value)> {
        let r = h.iter().fold(Request::get(path), |r, (k, v)| r.header(k, v));
        samples::ask(&format!("{service}{}", self.domain), self.port, r).await
    }

    async fn reviews(&self, id: &str, h: &HeaderMap) -> Answer {
        let Ok(number) = id.parse::<u64>() else {
            return json_of(400, &json!({ "error": "please provide numeric product ID" }));
        };
        let color = match self.me.release.as_str() {
            "v2" => Some("black"),
            "v3" => Some("red"),
            _ => None,
        };
        let mut both = [
            json!({ "reviewer": "Reviewer1", "text": "Twins, twice: one keeps count of the jokes and loses count of the brothers. A delight from the first door that is shut to the last that opens." }),
            json!({ "reviewer": "Reviewer2", "text": "Light as a feather beside the later plays, and all the better for it on a tired evening." }),
        ];
        if let Some(color) = color {
            let (status, v) = self.get("ratings", &format!("/ratings/{number}"), h, RATINGS_TIMEOUT, 1).await;
            for r in &mut both {
                let stars = r["reviewer"].as_str().and_then(|who| v["ratings"][who].as_i64());
                r["rating"] = match stars.filter(|_| status == 200) {
                    Some(n) => json!({ "stars": n, "color": color }),
                    None => json!({ "error": "Ratings service is currently unavailable" }),
                };
            }
        }
        let reviews = json!({ "id": id, "podname": self.me.name, "clustername": "null", "reviews": both });
        json_of(200, &reviews)
    }

    async fn productpage(&self, h: &HeaderMap) -> Answer {
        let (details, reviews) = tokio::join!(
            self.get("details", "/details/0", h, PAGE_TIMEOUT, 1),
            self.get("reviews", "/reviews/0", h, PAGE_TIMEOUT, 2)
        );
        let user = h.get("end-user").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let mut b = String::from("<h3>The Comedy of Errors</h3>\n");
        if details.0 == 200 {
            b += "<h4>Book Details</h4>\n<dl>\n";
            for k in ["type", "pages", "publisher", "language", "ISBN-10", "ISBN-13"] {
                let _ = writeln!(b, "<dt>{k}</dt><dd>{}</dd>", details.1[k].to_string().trim_matches('"'));
            }
            b += "</dl>\n";
        } else {
            b += "<h4>Error fetching product details!</h4>\n<p>Sorry, product details are currently unavailable for this book.</p>\n";
        }
        if reviews.0 == 200 {
            b += "<h4>Book Reviews</h4>\n";
            for r in reviews.1["reviews"].as_array().into_iter().flatten() {
                let _ = writeln!(b, "<blockquote><p>{}</p><small>{}</small>", text(&r["text"]), text(&r["reviewer"]));
                if let Some(n) = r["rating"]["stars"].as_u64() {
                    let color = text(&r["rating"]["color"]);
                    let stars = "&#9733;".repeat(n.min(5) as usize);
                    let _ = writeln!(b, "<font color=\"{color}\">{stars}</font>");
                } else if !r["rating"].is_null() {
                    b += "<p><i>Ratings service is currently unavailable</i></p>\n";
                }
                b += "</blockquote>\n";
            }
            let _ = writeln!(b, "<p>Reviews served by: <u>{}</u></p>", text(&reviews.1["podname"]));
        } else {
            b += "<h4>Error fetching product reviews!</h4>\n<p>Sorry, product reviews are currently unavailable for this book.</p>\n";
        }
        of(200, "text/html; charset=utf-8", page(user, &b))
    }
}

fn forwarded(h: &HeaderMap) -> HeaderMap {
    FORWARDED.iter().filter_map(|n| Some((header::HeaderName::from_static(n), h.get(*n)?.clone()))).collect()
}

/// Who is logged in, by the cookie.
fn session(h: &HeaderMap) -> Option<header::HeaderValue> {
    let cookies = h.get(header::COOKIE)?.to_str().ok()?;
    let user = cookies.split(';').find_map(|c| c.trim().strip_prefix("user="))?;
    header::HeaderValue::from_str(user).ok().filter(|u| !u.is_empty())
}

fn redirect(cookie: &str) -> Answer {
    let mut a = of(302, "text/plain", String::new());
    a.headers_mut().insert(header::LOCATION, header::HeaderValue::from_static("/productpage"));
    if let Ok(v) = header::HeaderValue::from_str(cookie) {
        a.headers_mut().insert(header::SET_COOKIE, v);
    }
    a
}

fn text(v: &Value) -> String {
    v.as_str().unwrap_or_default().replace('&', "&amp;").replace('<', "&lt;")
}

fn page(user: &str, body: &str) -> String {
    let who = if user.is_empty() {
        "<form method=\"post\" action=\"/login\"><input name=\"username\"> <input type=\"submit\" value=\"Sign in\"></form>".into()
    } else {
        format!("<p>{} (<a href=\"/logout\">sign out</a>)</p>", text(&json!(user)))
    };
    format!(
        "<!DOCTYPE html>\n<html><head><title>{TITLE}</title></head><body>\n<h1>Bookinfo Sample</h1>\n{who}\n{body}</body></html>\n"
    )
}

fn details(id: u64) -> Value {
    json!({
        "id": id, "author": "William Shakespeare", "year": 1595, "type": "paperback", "pages": 200, "publisher": "PublisherA",
        "language": "English", "ISBN-10": "1234567890", "ISBN-13": "123-1234567890",
    })
}
