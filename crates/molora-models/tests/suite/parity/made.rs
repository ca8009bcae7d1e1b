//! What PEFT wrote computes here what it computes there.

use molora_models::peft::{merge_into, open_poly};
use molora_testkit::{assert_close, device};

use super::{TOLERANCE, base, cases, expected, logits, peft_folder};

#[test]
fn golden_poly_of_peft() {
    for case in cases("poly") {
        let base = base();
        let folder = peft_folder().join(&case).join("adapter");
        let tasks = open_poly(&folder, &base).expect("an adapter of the base");
        assert_eq!(tasks.len(), 3, "{case}");
        for (task, adapter) in tasks.iter().enumerate() {
            let mut model = base.clone();
            merge_into(&mut model, adapter);
            let name = format!("task {task}");
            let wanted = expected(&case).tensor::<3>(&name, &device());
            let what = format!("{case} {name}");
            assert_close(logits(&model, None), wanted, TOLERANCE, &what);
        }
    }
}
