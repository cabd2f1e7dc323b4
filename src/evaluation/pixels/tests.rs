use proptest::prelude::*;

use super::super::auroc;
use super::*;

/// Image `p` of the check below: 37 x 41 pixels with three regions, of which one has two parts that touch at a corner; or with none.
fn image(p: usize) -> (Vec<f32>, Vec<bool>) {
    let (height, width) = (37, 41);
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
    let marked = |y: usize, x: usize| {
        p < 2
            && ((y < 5 && (3..9).contains(&x))
                || ((5..7).contains(&y) && (9..20).contains(&x))
                || (30..34).contains(&y) && (x + p) % 37 < 2)
    };
    pixels
        .map(|(y, x)| {
            let noise = ((y * 7919 + x * 104_729 + p * 1301) % 10_007) as f32 / 10_007.0;
            let mask = marked(y, x);
            (noise + if mask { 0.35 } else { 0.0 }, mask)
        })
        .unzip()
}

/// ```python
/// import numpy as np
/// from scipy.ndimage import label
/// from sklearn.metrics import roc_auc_score
///
/// y, x = np.mgrid[:37, :41]
/// heats, masks = [], []
/// for p in range(3):
///     noise = ((y * 7919 + x * 104729 + p * 1301) % 10007).astype(np.float32) / np.float32(10007)
///     mask = (y < 5) & (x >= 3) & (x < 9) | (y >= 5) & (y < 7) & (x >= 9) & (x < 20) | (y >= 30) & (y < 34) & ((x + p) % 37 < 2)
///     mask &= p < 2
///     heats.append(noise + np.where(mask, np.float32(0.35), np.float32(0)))
///     masks.append(mask)
/// heat, mask = np.stack(heats), np.stack(masks)
/// print(roc_auc_score(mask.ravel(), heat.ravel()))
///
/// labels, regions = label(mask, structure=np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]))
/// share = np.bincount(labels.ravel(), minlength=regions + 1)
/// weight = np.where(labels > 0, 1 / share[labels], 0)
/// thresholds = np.unique(heat)[::-1]
/// fpr = np.array([0] + [(heat[~mask] >= t).mean() for t in thresholds])
/// pro = np.array([0] + [weight[heat >= t].sum() / regions for t in thresholds])
/// inside = fpr < 0.3
/// print(regions, np.trapezoid(np.append(pro[inside], np.interp(0.3, fpr, pro)), np.append(fpr[inside], 0.3)) / 0.3)
/// ```
/// Computed with NumPy 2.4, SciPy 1.17, scikit-learn 1.9.
#[test]
fn agrees_with_scikit_learn_and_scipy() {
    let mut pixels = PixelRanking::default();
    for p in 0..3 {
        let (heat, mask) = image(p);
        pixels.add(&heat, &mask, 41);
    }
    let agrees = |found: Option<Binned>, exact: f64| {
        let Binned { value, error } = found.unwrap();
        assert!(error < 1e-3, "{error}");
        assert!((value - exact).abs() <= error + 1e-12, "{value} {error}");
    };
    assert_eq!(pixels.regions(), 6);
    agrees(pixels.auroc(), 0.791_760_099_295_740_8);
    agrees(pixels.aupro(), 0.514_541_060_068_894_4);
}

#[test]
fn the_worst_and_the_best() {
    let mask = [false, false, true, true];
    let of = |heat: [f32; 4]| {
        let mut pixels = PixelRanking::default();
        pixels.add(&heat, &mask, 2);
        (pixels.auroc().unwrap().value, pixels.aupro().unwrap().value)
    };
    assert_eq!(of([0.0, 0.1, 0.2, f32::NAN]), (1.0, 1.0));
    assert_eq!(of([0.0, 5.0, f32::NEG_INFINITY, -1.0]), (0.0, 0.0));
    // With a constant map, the overlap equals the false positive rate, and its mean up to 0.3 is 0.15.
    assert_eq!(of([1.0; 4]), (0.5, 0.15));
}

#[test]
fn a_small_defect_counts_as_much_as_a_large_one() {
    // None of 20 normal pixels is as hot as the large defect. The small defect is missed.
    let mut heat = vec![0.5; 30];
    let mut mask = vec![false; 30];
    heat[..9].fill(1.0);
    mask[..9].fill(true);
    heat[29] = 0.0;
    mask[29] = true;
    let mut pixels = PixelRanking::default();
    pixels.add(&heat, &mask, 30);
    assert_eq!(pixels.regions(), 2);
    assert!((pixels.aupro().unwrap().value - 0.5).abs() < 1e-12);
    assert_eq!(pixels.auroc().unwrap().value, 0.9);
}

#[test]
fn an_absent_class_has_no_answer() {
    let mut pixels = PixelRanking::default();
    assert_eq!((pixels.auroc(), pixels.aupro()), (None, None));
    pixels.add(&[1.0, 2.0], &[true, true], 2);
    assert_eq!((pixels.auroc(), pixels.aupro()), (None, None));
    let mut pixels = PixelRanking::default();
    pixels.add(&[1.0, 2.0], &[false, false], 2);
    assert_eq!((pixels.auroc(), pixels.aupro()), (None, None));
}

#[test]
fn bins_keep_the_order() {
    let ordered = [
        f32::NEG_INFINITY,
        -1e9,
        -1.0,
        -1e-40,
        0.0,
        1e-30,
        0.5,
        0.5005,
        1.0,
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
    ];
    assert!(ordered.is_sorted_by(|a, b| bin_of(*a) < bin_of(*b)));
    assert_eq!(bin_of(0.0), bin_of(-0.0));
    assert_eq!(bin_of(-f32::NAN), bin_of(f32::NAN));
}

/// Expected values: `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`.
#[test]
fn stretching_is_bilinear() {
    assert_eq!(
        stretch(&[0.0, 4.0, 8.0, 12.0], (2, 2), (4, 2)),
        [0.0, 1.0, 3.0, 4.0, 8.0, 9.0, 11.0, 12.0]
    );
    assert_eq!(
        stretch(&[0.0, 4.0], (1, 2), (2, 4)),
        [0.0, 0.0, 1.0, 1.0, 3.0, 3.0, 4.0, 4.0]
    );
    assert_eq!(stretch(&[1.0, 3.0, 5.0, 7.0], (4, 1), (2, 1)), [2.0, 6.0]);
    assert_eq!(stretch(&[7.0], (1, 1), (3, 2)), [7.0; 6]);
}

fn maps() -> impl Strategy<Value = Vec<(Vec<f32>, Vec<bool>)>> {
    let pixel = (0.0f32..1.0, any::<bool>());
    let map = prop::collection::vec(pixel, 12).prop_map(|pixels| pixels.into_iter().unzip());
    prop::collection::vec(map, 1..6)
}

proptest! {
    // Few cases: each has a million bins.
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn the_exact_auroc_is_within_the_error(maps in maps()) {
        let mut pixels = PixelRanking::default();
        for (heat, mask) in &maps {
            pixels.add(heat, mask, 4);
        }
        let (heats, masks): (Vec<_>, Vec<_>) = maps.into_iter().unzip();
        match (pixels.auroc(), auroc(&heats.concat(), &masks.concat())) {
            (None, None) => {}
            (Some(Binned { value, error }), Some(exact)) => {
                prop_assert!((value - exact).abs() <= error + 1e-12);
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// With one region, the curve of overlap against false positive rate is the ROC.
    #[test]
    fn overlap_of_one_region_is_the_roc(mut heat in prop::collection::vec(0.0f32..1.0, 30), area in 1usize..29) {
        let mask: Vec<_> = (0..30).map(|i| i < area).collect();
        heat.iter_mut().for_each(|heat| *heat = (*heat * 8.0).round());
        let mut pixels = PixelRanking::default();
        pixels.add(&heat, &mask, 30);
        let overlap = pixels.overlap_up_to(1.0).unwrap().value;
        prop_assert!((overlap - pixels.auroc().unwrap().value).abs() < 1e-12);
    }

    #[test]
    fn a_monotone_map_of_heats_changes_nothing(maps in maps(), factor in 1u8..20) {
        let (mut pixels, mut scaled) = (PixelRanking::default(), PixelRanking::default());
        for (heat, mask) in &maps {
            pixels.add(heat, mask, 3);
            let heat: Vec<_> = heat.iter().map(|h| h * f32::from(factor).exp2()).collect();
            scaled.add(&heat, mask, 3);
        }
        prop_assert_eq!(pixels.auroc(), scaled.auroc());
        prop_assert_eq!(pixels.aupro(), scaled.aupro());
    }
}
