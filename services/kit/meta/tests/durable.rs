//! What is acknowledged survives kill -9, a second opener is refused, and the schema gate holds.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use gantry_meta::{Db, Error, Table};

#[derive(Clone, PartialEq, prost::Message)]
struct Row {
    #[prost(uint64, tag = "1")]
    number: u64,
}

const CHILD: &str = "GANTRY_META_TEST_DIR";

fn open(dir: &std::path::Path) -> (Db, Table<Row>) {
    let db = Db::open(dir, 1, &[]).unwrap();
    let table = Table::new(&db, 7);
    (db, table)
}

/// Not a test of its own: the process that is killed. Does nothing unless started by `killed_writer`.
#[test]
fn writer_process() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let (db, table) = open(dir.as_ref());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        for number in 0u64.. {
            let mut batch = db.batch();
            table.put(&mut batch, &number.to_be_bytes(), &Row { number });
            db.commit(batch).await.unwrap();
            println!("ack {number}");
        }
    });
}

#[test]
fn killed_writer() {
    let dir = std::env::temp_dir().join(format!("gantry-meta-kill-{}", std::process::id()));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer_process", "--nocapture"])
        .env(CHILD, &dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut last = None;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if let Some(number) = line.unwrap().split("ack ").nth(1) {
            last = Some(number.parse::<u64>().unwrap());
            if last == Some(200) {
                child.kill().unwrap();
            }
        }
    }
    child.wait().unwrap();
    let (_db, table) = open(&dir);
    let rows = table.scan().unwrap();
    let last = last.unwrap();
    assert!(
        rows.len() as u64 > last,
        "{} rows, {last} acknowledged",
        rows.len()
    );
    assert!(
        rows.iter()
            .enumerate()
            .all(|(i, (key, row))| row.number == i as u64 && *key == row.number.to_be_bytes())
    );
    assert_eq!(
        table.scan_from(&100u64.to_be_bytes()).unwrap().len(),
        rows.len() - 100
    );
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn schema_gate_and_lock() {
    let dir = std::env::temp_dir().join(format!("gantry-meta-gate-{}", std::process::id()));
    {
        let (_db, _table) = open(&dir);
        let second = Db::open(&dir, 1, &[]);
        assert!(matches!(second, Err(Error::Locked { .. })), "{second:?}");
    }
    drop(Db::open(&dir, 3, &[]).unwrap());
    assert!(
        dir.with_file_name(format!("gantry-meta-gate-{}.v1", std::process::id()))
            .is_dir()
    );
    assert!(matches!(
        Db::open(&dir, 2, &[]),
        Err(Error::TooNew {
            found: 3,
            known: 2,
            ..
        })
    ));
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::remove_dir_all(
        dir.with_file_name(format!("gantry-meta-gate-{}.v1", std::process::id())),
    )
    .unwrap();
}
