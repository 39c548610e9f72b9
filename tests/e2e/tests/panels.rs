//! The table of what dashboards ask (data/panels.tsv), and how it is read and judged: without a cluster.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test's failure is a panic")]

use karst_e2e::panels::{Answers, Expectation, Query, encode, faults, fill, full, read, series, table};
use std::collections::BTreeMap;

const TABLE: &str = include_str!("../data/panels.tsv");

fn of(expectation: Expectation) -> Query {
    Query { dashboard: "mesh".into(), panel: "4xxs".into(), expectation, text: "up".into() }
}

#[test]
fn the_table_has_all_dashboards_with_all_their_panels() {
    let answers: Answers = read(TABLE).unwrap().into_iter().map(|query| (query, Ok(1))).collect();
    let panels: Vec<(&str, usize)> = full(&answers).into_iter().map(|(name, [.., all])| (name, all)).collect();
    let expected = [
        ("Kiali", 14),
        ("control plane", 13),
        ("mesh", 7),
        ("performance", 12),
        ("service", 22),
        ("tutorial", 4),
        ("workload", 19),
        ("ztunnel", 10),
    ];
    assert_eq!(panels, expected);
}

#[test]
fn a_line_says_what_is_expected_and_why() {
    let columns = TABLE.lines().find(|line| !line.starts_with('#')).unwrap();
    let one = |line: &str| read(&format!("# About.\n{columns}\n{line}\n"));
    assert_eq!(one("mesh\t4xxs\tdata\t\tup").unwrap(), [of(Expectation::Data)]);
    assert_eq!(one("mesh\t4xxs\tabsent\tno Go\tup").unwrap(), [of(Expectation::Absent("no Go".into()))]);
    for (line, says) in [
        ("mesh\t4xxs\tabsent\t\tup", "line 3: no reason is given"),
        ("mesh\t4xxs\tdata\twhy\tup", "line 3: data is expected, and a reason is given for none"),
        ("mesh\t4xxs\tnever\twhy\tup", "line 3: unknown expectation \"never\""),
        ("mesh\t4xxs\tdata\tup", "line 3: 4 columns, not 5"),
        ("mesh\t4xxs\tdata\t\t", "line 3: no query"),
    ] {
        assert_eq!(one(line).unwrap_err(), says);
    }
    assert!(read("mesh\t4xxs\tdata\t\tup").is_err(), "without a head");
}

#[test]
fn every_variable_gets_its_value() {
    let values = [("src", "a"), ("srcns", "b"), ("__rate_interval", "1m")];
    let filled = fill("rate(m{n=\"$srcns\",w=\"$src\"}[$__rate_interval])", &values);
    assert_eq!(filled.unwrap(), "rate(m{n=\"b\",w=\"a\"}[1m])");
    assert_eq!(fill("m{n=\"$dstns\"}", &values).unwrap_err(), "$dstns has no value");
}

#[test]
fn series_are_counted_that_have_a_number() {
    let answer =
        |values: &str| format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{values}]}}}}"#);
    assert_eq!(series(&answer("")), Ok(0));
    let two = r#"{"metric":{},"value":[1,"0"]},{"metric":{},"value":[1,"NaN"]},{"metric":{},"value":[1,"2.5"]}"#;
    assert_eq!(series(&answer(two)), Ok(2));
    let refused = r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#;
    assert_eq!(series(refused).unwrap_err(), "parse error");
    assert!(series("not found").is_err());
}

#[test]
fn what_is_not_as_expected_is_a_fault() {
    let judged = |expectation, answer: Result<usize, String>| faults(&vec![(of(expectation), answer)]);
    let event = || Expectation::Event("no error".into());
    let absent = || Expectation::Absent("no Go".into());
    for (expectation, answer) in [(Expectation::Data, Ok(1)), (event(), Ok(0)), (event(), Ok(1)), (absent(), Ok(0))] {
        assert_eq!(judged(expectation, answer), [""; 0]);
    }
    assert_eq!(judged(Expectation::Data, Ok(0)), ["mesh, 4xxs: has no data: up"]);
    assert_eq!(judged(absent(), Ok(2)), ["mesh, 4xxs: has 2 series, though no Go: up"]);
    assert_eq!(judged(event(), Err("parse error".into())), ["mesh, 4xxs: is refused: parse error: up"]);
}

#[test]
fn a_panel_has_data_if_one_of_its_queries_has() {
    let answers = vec![(of(Expectation::Data), Ok(0)), (of(Expectation::Event("x".into())), Ok(3))];
    assert_eq!(full(&answers), BTreeMap::from([("mesh", [1, 1, 1])]));
    assert!(table(&answers).lines().all(|line| line.starts_with("mesh")));
}

#[test]
fn a_query_survives_a_query_string() {
    assert_eq!(encode("sum(a{b=~\"c|d\"})"), "sum%28a%7Bb%3D~%22c%7Cd%22%7D%29".replace('~', "%7E"));
}
