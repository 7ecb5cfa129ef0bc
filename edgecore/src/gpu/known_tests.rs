use super::*;

fn device(index: u32) -> Device {
    let usage = GpuUsage {
        temperature_c: Some(50),
        slowdown_c: Some(89),
        memory_used_bytes: Some(1 << 30),
        ecc_uncorrected: Some(0),
        ..GpuUsage::default()
    };
    let uuid = Some(format!("GPU-{index}"));
    Device { uuid, index, model: "NVIDIA L4".into(), memory_bytes: 24 << 30, usage, ..Device::default() }
}

fn look(devices: impl IntoIterator<Item = Device>) -> Look {
    let driver = Driver::Working { version: "550.54.15".into(), cuda: "12.4".into() };
    Look { driver, devices: devices.into_iter().collect() }
}

fn reasons(known: &Known) -> Vec<String> {
    known.inventory().into_iter().flat_map(|i| i.devices).map(|gpu| gpu.problem).collect()
}

fn told(known: &Known) -> String {
    known.trouble().unwrap().map(|p| p.reason).unwrap_or_default()
}

fn seen() -> Known {
    Known::default().after(look([device(0), device(1)]))
}

#[test]
fn what_answers_is_known_and_what_is_the_same_is_no_news() {
    let known = seen();
    assert_eq!((known.looks, known.serves(), told(&known)), (1, true, String::new()));
    assert_eq!(known.usage().len(), 2);
    assert_eq!(known.driver_version(), Some("550.54.15"));
    assert_eq!(known.after(look([device(1), device(0)])), known);
}

#[test]
fn a_box_without_a_driver_has_nothing_to_tell() {
    let known = Known::default().after(Look::without(Driver::Absent { why: "no driver".into() }));
    assert_eq!((known.looks, known.inventory(), known.trouble(), known.serves()), (1, None, None, false));
}

#[test]
fn a_gpu_that_is_lost_stays_known_until_it_answers() {
    let why = || Some("device fell off the bus".to_owned());
    let nameless = Device { uuid: None, index: 1, lost: why(), ..Device::default() };
    let named = Device { lost: why(), ..device(1) };
    for lost in [look([device(0), nameless]), look([device(0), named]), look([device(0)])] {
        let known = seen().after(lost);
        assert_eq!(reasons(&known), ["", "GpuLost"]);
        assert_eq!((told(&known).as_str(), known.serves(), known.usage().len()), ("GpuLost", true, 1));
        let message = known.trouble().unwrap().unwrap().message;
        assert!(message.starts_with("GPU-1: it does not answer"), "{message}");
        assert_eq!(reasons(&known.after(look([device(0), device(1)]))), ["", ""]);
    }
    let never = Known::default().after(look([Device { lost: why(), ..Device::default() }]));
    assert_eq!(never.inventory().unwrap().devices[0].uuid, "GPU-at-index-0");
    assert_eq!(reasons(&never), ["GpuLost"]);
}

#[test]
fn an_xid_speaks_against_a_gpu_until_the_driver_is_loaded_anew() {
    let with = |xids: &[u64]| look([Device { xids: xids.to_vec(), ..device(0) }, device(1)]);
    let of_app = seen().after(with(&[31]));
    assert_eq!((told(&of_app).as_str(), of_app.usage()[0].last_xid), ("", Some(31)));
    let known = of_app.after(with(&[79, 45]));
    assert_eq!((told(&known).as_str(), known.usage()[0].last_xid), ("GpuXid", Some(45)));
    assert!(known.trouble().unwrap().unwrap().message.contains("Xid 79, it has fallen off the bus"));
    let later = known.after(with(&[]));
    assert_eq!(told(&later), "GpuXid");
    let newer = Driver::Working { version: "560.1".into(), cuda: "12.6".into() };
    assert_eq!(told(&later.after(Look { driver: newer, ..with(&[]) })), "");
    let gone = later.after(Look::without(Driver::Absent { why: "x".into() }));
    assert_eq!((told(&gone).as_str(), gone.serves()), ("DriverGone", false));
    assert_eq!(told(&gone.after(with(&[]))), "");
}

#[test]
fn a_hot_gpu_cools_down_a_little_before_it_is_well() {
    let at = |known: &Known, celsius: u32| {
        let mut hot = device(0);
        hot.usage.temperature_c = Some(celsius);
        known.after(look([hot, device(1)]))
    };
    let known = at(&seen(), 89);
    assert_eq!((told(&known).as_str(), known.serves()), ("GpuOverheating", true));
    let known = at(&known, 86);
    assert_eq!(told(&known), "GpuOverheating");
    assert_eq!(told(&at(&known, 83)), "");
}

#[test]
fn lost_data_speaks_against_a_gpu_and_comes_before_heat() {
    let (mut bad, mut hot) = (device(1), device(0));
    bad.usage.ecc_uncorrected = Some(1);
    hot.usage.throttle = vec!["HW_THERMAL_SLOWDOWN".into()];
    let known = seen().after(look([hot, bad]));
    assert_eq!(reasons(&known), ["GpuOverheating", "GpuEccUncorrected"]);
    assert_eq!(told(&known), "GpuEccUncorrected");
}

#[test]
fn a_driver_in_trouble_takes_all_gpus_with_it_and_gives_them_back() {
    for reason in [reason::HANGS, reason::MISMATCH, reason::FAILED] {
        let known = seen().after(Look::without(Driver::trouble(reason, "mend it")));
        assert_eq!((told(&known).as_str(), known.serves()), (reason, false));
        assert_eq!((reasons(&known).len(), known.usage().len(), known.driver_version()), (2, 0, None));
        assert!(known.after(look([device(0), device(1)])).serves());
    }
    let first = Known::default().after(Look::without(Driver::trouble(reason::MISMATCH, "mend it")));
    assert_eq!((told(&first).as_str(), first.inventory().unwrap().devices.len()), ("DriverMismatch", 0));
}
