//! Both ways to mount an overlay show the same tree, the older one for kernels without `lowerdir+` too.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use gantry_sys::{fs, mount, ns, overlay};

/// As many layers as Docker allows: their paths alone are longer than a page.
const LAYERS: usize = 127;

fn read(mounted: &mount::Detached, name: &str) -> String {
    let file = fs::open_in_root(mounted.fd(), Path::new(name)).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn many_layers_either_way() {
    let home = std::env::temp_dir().join(format!("gantry-sys, overlay-{}", std::process::id()));
    let layers: Vec<_> = (0..LAYERS)
        .map(|nth| home.join(format!("a-rather-long-name-of-a-layer-{nth:0>40}")))
        .collect();
    for (nth, layer) in layers.iter().enumerate() {
        std::fs::create_dir_all(layer).unwrap();
        std::fs::write(layer.join(format!("own-{nth}")), nth.to_string()).unwrap();
        std::fs::write(layer.join("shared"), nth.to_string()).unwrap();
    }
    for dir in ["upper", "work"] {
        std::fs::create_dir(home.join(dir)).unwrap();
    }
    let lower: Vec<_> = layers.iter().map(|dir| dir.to_str().unwrap()).collect();
    let data = [
        format!("lowerdir={}", lower.join(":")),
        format!("upperdir={}", home.join("upper").display()),
        format!("workdir={}", home.join("work").display()),
    ];
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    type Way = fn(&[String]) -> std::io::Result<mount::Detached>;
    let ways: [Way; 2] = [
        |data| mount::new_fs("overlay", "overlay", data),
        overlay::mount,
    ];
    for way in ways {
        let mounted = ns::aside(|| way(&data)).unwrap();
        assert_eq!(read(&mounted, "shared"), "0");
        for nth in 0..LAYERS {
            assert_eq!(read(&mounted, &format!("own-{nth}")), nth.to_string());
        }
    }
    let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(before, after);
    let too_many: Vec<_> = lower.iter().cycle().take(300).copied().collect();
    let error = ns::aside(|| overlay::mount(&[format!("lowerdir={}", too_many.join(":"))]));
    assert!(error.unwrap_err().to_string().contains("300 layers"));
    std::fs::remove_dir_all(&home).unwrap();
}
