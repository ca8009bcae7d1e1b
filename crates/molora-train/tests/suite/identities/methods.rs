//! Methods that are others at the ends of their ranges.

use burn::tensor::Tensor;
use molora_adapters::GeneralExpert;
use molora_adapters::core::{Core, ScaleCore};
use molora_adapters::{BankConfig, Slices};
use molora_models::Adaptable;
use molora_models::AdapterSpec;
use molora_testkit::{GRADIENT, assert_close};
use molora_train::recipe;
use molora_train::recipe::Transform;
use proptest::prelude::*;

use super::small::{Rows, Shape, copy_experts, device, random, shapes, spec};

#[test]
fn glider_has_the_parts_and_stages_of_phatgoose() {
    let [phatgoose, glider] = ["phatgoose", "glider"].map(|n| recipe::find(n).expect("listed"));
    assert_eq!(glider.adapter, phatgoose.adapter);
    assert_eq!(
        (&glider.data, &glider.objective),
        (&phatgoose.data, &phatgoose.objective)
    );
    let (shared, rest) = glider.stages.split_at(phatgoose.stages.len());
    assert_eq!(shared, phatgoose.stages);
    let transforms: Vec<_> = rest.iter().map(|stage| stage.transform.clone()).collect();
    assert!(matches!(
        transforms[..],
        [Some(Transform::EmbedInstructions(_))]
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn glider_with_weight_zero_is_phatgoose(shape in shapes()) {
        let mut rows = Rows::new(shape);
        let (expected, _) = rows.forward(&random(&spec("phatgoose", shape), shape.seed));
        rows.guidance.bias = Some(Tensor::zeros([shape.batch, shape.experts], &device()));
        let (found, _) = rows.forward(&random(&spec("glider", shape), shape.seed));
        assert_close(rows.real(&found), rows.real(&expected), 0.0, "hidden");
    }

    #[test]
    fn a_blend_of_one_has_no_general_expert(shape in shapes()) {
        let blended = AdapterSpec { general: Some(GeneralExpert::RoutedShare(1.0)), ..spec("at-moe", shape) };
        let model = random(&blended, shape.seed);
        let mut routed = random(&AdapterSpec { general: None, ..blended }, shape.seed);
        copy_experts(&model, &mut routed, |_| (0..shape.experts).collect());
        let rows = Rows::new(shape);
        let (found, expected) = (rows.forward(&model).0, rows.forward(&routed).0);
        assert_close(rows.real(&found), rows.real(&expected), GRADIENT, "hidden");
    }

    #[test]
    fn a_blend_of_zero_is_the_general_expert_alone(shape in shapes()) {
        let blended = AdapterSpec { general: Some(GeneralExpert::RoutedShare(0.0)), ..spec("at-moe", shape) };
        let model = random(&blended, shape.seed);
        let mut general = random(&blended.one_expert(false), shape.seed);
        copy_experts(&model, &mut general, |_| vec![shape.experts]);
        let rows = Rows::new(shape);
        let (found, expected) = (rows.forward(&model).0, rows.forward(&general).0);
        assert_close(rows.real(&found), rows.real(&expected), GRADIENT, "hidden");
    }

    /// One expert has the weight 1 whatever its key says, and a scale of ones is none.
    #[test]
    fn samora_with_one_expert_is_a_gated_lora(shape in shapes()) {
        let mut samora = spec("samora", shape);
        samora.bank.num_experts = 1;
        let lora = AdapterSpec {
            router: None,
            bank: BankConfig {
                slices: Slices::Independent,
                ..samora.bank.clone()
            },
            ..samora.clone()
        };
        let mut model = random(&samora, shape.seed);
        for (_, site) in model.sites_mut() {
            let scale = site.bank.core.scale().expect("sigma");
            let ones = burn::module::Param::from_tensor(scale.ones_like());
            site.bank.core = Core::Scale(ScaleCore::new(ones, site.bank.rank()));
        }
        let mut gated = random(&lora, shape.seed);
        copy_experts(&model, &mut gated, |_| vec![0]);
        let rows = Rows::new(Shape { batch: 3, ..shape });
        let (found, expected) = (rows.forward(&model).0, rows.forward(&gated).0);
        assert_close(rows.real(&found), rows.real(&expected), GRADIENT, "hidden");
    }
}
