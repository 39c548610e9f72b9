//! Faults that are injected, of VirtualServices and HTTPFilters.

use crate::convert::{
    compilation::routes::scalar::{duration, per_million},
    objects::FieldError,
};
use karst_api::route as ir;
use karst_manifest::traffic::{Percent, VsFault};

/// A fault, as a VirtualService writes it.
pub(crate) fn compile(fault: &VsFault, at: &str) -> Result<ir::Fault, FieldError> {
    let mut out = ir::Fault::default();
    // Without a percentage there is no fault (Istio).
    let part = |p: &Option<Percent>, old: Option<u32>, at: &str| match (p, old) {
        (Some(p), _) => per_million(p.value, at),
        (None, Some(p)) => per_million(f64::from(p), at),
        (None, None) => Ok(0),
    };
    if let Some(delay) = &fault.delay {
        let at = format!("{at}.fault.delay");
        let Some(fixed_delay) = &delay.fixed_delay else {
            return Err((
                format!("{at}.fixedDelay"),
                "is missing: exponentialDelay is not implemented (nor in Istio) [KARST-0010]".into(),
            ));
        };
        out.delay_ms = duration(fixed_delay).map_err(|e| (format!("{at}.fixedDelay"), e.to_string()))?;
        out.delay_per_million = part(&delay.percentage, delay.percent, &format!("{at}.percentage"))?;
    }
    if let Some(abort) = &fault.abort {
        let at = format!("{at}.fault.abort");
        match (abort.http_status, &abort.grpc_status) {
            (Some(s), _) if (200..600).contains(&s) => out.abort_status = u32::from(s),
            (Some(s), _) => {
                return Err((format!("{at}.httpStatus"), format!("invalid status {s}: use 200 to 599 [KARST-0026]")));
            }
            (None, Some(status)) => {
                let code = grpc_code(status).ok_or_else(|| {
                    (
                        format!("{at}.grpcStatus"),
                        format!(
                            "invalid gRPC status {status:?}: use a name or a number, such as UNAVAILABLE or 14 [KARST-0026]"
                        ),
                    )
                })?;
                out.abort_grpc = Some(code);
            }
            (None, None) => return Err((at, "must set httpStatus or grpcStatus [KARST-0015]".into())),
        }
        out.abort_per_million = part(&abort.percentage, abort.percent, &format!("{at}.percentage"))?;
    }
    Ok(out)
}

fn grpc_code(text: &str) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let by_name = || NAMES.iter().position(|n| n.eq_ignore_ascii_case(text)).map(|n| n as u32);
    text.parse().ok().filter(|n| *n <= 16).or_else(by_name)
}
