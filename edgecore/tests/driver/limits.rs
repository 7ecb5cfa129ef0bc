//! Limits of control groups, and what a workload uses.

use super::*;

/// Limits, where this machine can apply them.
fn limits(json: &str) -> Option<Limits> {
    let limits: Limits = serde_json::from_str(json).unwrap();
    let name = format!("trial-{}-{}", std::process::id(), json.len());
    match Layout::detect().create(&name, &limits) {
        Ok(group) => {
            group.remove();
            Some(limits)
        }
        Err(e) => {
            eprintln!("skipped: {e}");
            None
        }
    }
}

#[tokio::test]
async fn memory_beyond_the_limit_is_death() {
    let Some(limits) = limits(r#"{"memory": "32Mi"}"#) else { return };
    let on = Box_::new();
    let mut spec = on.script("echo up; x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo too far; sleep 600");
    spec.workload.limits = limits;
    on.driver.start(&spec).await.unwrap();
    let exit = on.exit().await;
    assert_eq!(exit.signal, Some(9), "{exit:?} {}", on.output().await);
    assert!(exit.message.contains("more memory than its limit of 32Mi"), "{}", exit.message);
    assert!(!on.output().await.contains("too far"));
}

#[tokio::test]
async fn processes_beyond_the_limit_do_not_start() {
    let Some(limits) = limits(r#"{"pids": 10}"#) else { return };
    let on = Box_::new();
    let script = "i=0; while [ $i -lt 30 ]; do i=$((i+1)); sleep 600 & done; echo all; wait";
    let mut spec = on.script(script);
    spec.workload.limits = limits;
    on.driver.start(&spec).await.unwrap();
    let output = on.output_with("fork").await;
    assert!(!output.contains("stdout F all"), "{output}");
    on.driver.stop(&app(), Duration::ZERO).await.unwrap();
    assert!(on.alive().is_empty());
}

#[tokio::test]
async fn what_a_workload_uses_is_told_while_it_runs() {
    let b = Box_::new();
    assert_eq!(b.driver.usage(&app()).await, None);
    // Two processes that hold memory, one of which works.
    let script = "sleep 60 & while :; do :; done";
    b.driver.start(&b.script(script)).await.unwrap();
    let worked = eventually("processor time", || async {
        let used = b.driver.usage(&app()).await.unwrap();
        used.cpu.filter(|cpu| *cpu >= Duration::from_millis(50)).map(|_| used)
    });
    let memory = worked.await.memory_bytes.unwrap();
    assert!((64 << 10..1 << 30).contains(&memory), "{memory} bytes");
    b.driver.stop(&app(), Duration::ZERO).await.unwrap();
    assert_eq!(b.driver.usage(&app()).await, None);
}

#[tokio::test]
async fn groups_are_made_used_and_removed() {
    let Some(limits) = limits(r#"{"memory": "64Mi", "cpuMillis": 250, "pids": 10}"#) else { return };
    let on = Box_::new();
    let mut spec = on.script("exec sleep 600");
    spec.workload.limits = limits;
    on.driver.start(&spec).await.unwrap();
    let running = on.record("running.json");
    let groups: Vec<_> =
        running["groups"].as_array().unwrap().iter().map(|g| PathBuf::from(g.as_str().unwrap())).collect();
    for group in &groups {
        let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert_eq!(pids.trim(), on.pid().to_string(), "{}", group.display());
    }
    on.driver.stop(&app(), Duration::ZERO).await.unwrap();
    assert!(groups.iter().all(|group| !group.exists()));
}
