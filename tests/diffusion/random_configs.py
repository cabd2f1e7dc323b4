"""Configurations drawn at random from all that a class of schedulers takes."""

CLASSES = [
    "DDPMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "PNDMScheduler",
]
PREDICTIONS = {name: ["epsilon", "sample", "v_prediction"] for name in CLASSES}
for without_sample in ("EulerAncestralDiscreteScheduler", "PNDMScheduler"):
    PREDICTIONS[without_sample] = ["epsilon", "v_prediction"]
SPACINGS = ["leading", "linspace", "trailing"]
STEPS = [1, 2, 4, 10, 50]


class Drawn:
    """Values drawn with a generator of NumPy, as plain Python."""

    def __init__(self, rng):
        self.rng = rng

    def one(self, *values):
        return values[self.rng.integers(len(values))]

    def chance(self, share):
        return bool(self.rng.random() < share)

    def number(self, low, high):
        return float(self.rng.uniform(low, high))

    def whole(self, low, high):
        return int(self.rng.integers(low, high + 1))


def schedule(draw, name):
    """How noise grows with the timesteps."""
    kinds = ["linear", "scaled_linear", "squaredcos_cap_v2"]
    if name == "DDPMScheduler":
        kinds += ["laplace", "sigmoid"]
    config = {"num_train_timesteps": draw.one(1000, 1000, 1000, 100, 50, 400, draw.whole(60, 2000))}
    if draw.chance(0.8):
        config["beta_schedule"] = draw.one(*kinds)
    if draw.chance(0.5):
        config["beta_start"] = draw.one(0.0001, 0.00085, draw.number(1e-5, 1e-3))
        config["beta_end"] = draw.one(0.02, 0.012, draw.number(5e-3, 3e-2))
    if draw.chance(0.05):
        count = config["num_train_timesteps"]
        low, high = draw.number(1e-4, 1e-3), draw.number(0.01, 0.03)
        config["trained_betas"] = [low + (high - low) * i / count for i in range(count)]
    if draw.chance(0.2):
        config["rescale_betas_zero_snr"] = True
    return config


def threshold(draw):
    """Dynamic thresholding."""
    return {
        "thresholding": True,
        "dynamic_thresholding_ratio": draw.one(0.995, draw.number(0.5, 1.0)),
        "sample_max_value": draw.one(1.0, draw.number(1.0, 5.0)),
    }


def bounds(draw):
    """What keeps the clean sample in its range, of classes that clip."""
    config = {}
    if draw.chance(0.6):
        config["clip_sample"] = draw.chance(0.5)
    if draw.chance(0.3):
        config["clip_sample_range"] = draw.number(0.5, 4.0)
    return config | (threshold(draw) if draw.chance(0.2) else {})


def levels(draw):
    """Noise levels of another kind."""
    config = {}
    kind = draw.one(None, None, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    if kind:
        config[kind] = True
    if draw.chance(0.2):
        config["sigma_min"] = draw.number(0.005, 0.1)
        config["sigma_max"] = draw.number(5.0, 80.0)
    return config


def multistep(draw):
    """What both multistep solvers take."""
    config = levels(draw) | {"solver_order": draw.one(1, 2, 2, 3)}
    if draw.chance(0.15):
        config = {"solver_order": config["solver_order"], "use_flow_sigmas": True}
        config |= {"flow_shift": draw.one(1.0, draw.number(0.5, 5.0)), "prediction_type": "flow_prediction"}
    if draw.chance(0.3):
        config["lower_order_final"] = draw.chance(0.5)
    if draw.chance(0.3):
        config["final_sigmas_type"] = "sigma_min"
    return config | (threshold(draw) if draw.chance(0.15) else {})


def own(draw, name):
    """The fields that only some classes have."""
    config = {}
    if name == "DDPMScheduler":
        kinds = ["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"]
        config = bounds(draw) | {"variance_type": draw.one(*kinds)}
    if name in ("DDIMScheduler", "LCMScheduler"):
        config = bounds(draw) | {"set_alpha_to_one": draw.chance(0.5)}
    if name == "LCMScheduler":
        config |= {"original_inference_steps": draw.one(50, 50, 100), "timestep_scaling": draw.one(10.0, 1.0)}
    if name == "PNDMScheduler":
        config = {"skip_prk_steps": draw.chance(0.7), "set_alpha_to_one": draw.chance(0.5)}
    if name == "EulerDiscreteScheduler":
        config = levels(draw) | {"interpolation_type": draw.one("linear", "linear", "log_linear")}
        config |= {"timestep_type": draw.one("discrete", "discrete", "continuous")}
        config |= {"final_sigmas_type": draw.one("zero", "sigma_min")}
    if name == "DPMSolverMultistepScheduler":
        config = multistep(draw) | {"solver_type": draw.one("midpoint", "heun")}
        kinds = ["dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"]
        config["algorithm_type"] = draw.one(*kinds)
        if "++" not in config["algorithm_type"]:
            config["final_sigmas_type"] = "sigma_min"
        if draw.chance(0.2):
            config["euler_at_final"] = True
        if draw.chance(0.2) and "use_flow_sigmas" not in config:
            config["use_lu_lambdas"] = True
        if draw.chance(0.2):
            config["lambda_min_clipped"] = draw.one(-5.1, draw.number(-6, -2))
    if name == "UniPCMultistepScheduler":
        config = multistep(draw) | {"solver_type": draw.one("bh1", "bh2"), "predict_x0": draw.chance(0.7)}
        if not config["predict_x0"]:
            config["final_sigmas_type"] = "sigma_min"
        if draw.chance(0.2):
            config["disable_corrector"] = [draw.whole(0, 5)]
    return config


def configuration(rng):
    """One configuration, its number of steps and eta."""
    draw = Drawn(rng)
    name = draw.one(*CLASSES)
    config = {"_class_name": name, "prediction_type": draw.one(*PREDICTIONS[name])}
    if draw.chance(0.9):
        config["timestep_spacing"] = draw.one(*SPACINGS)
    if draw.chance(0.3):
        config["steps_offset"] = draw.whole(0, 1)
    config |= schedule(draw, name) | own(draw, name)
    if config["prediction_type"] == "flow_prediction" and not config.get("predict_x0", True):
        config["prediction_type"] = "epsilon"
    steps = draw.one(*STEPS, draw.whole(1, 60))
    eta = draw.one(0.0, 1.0, draw.number(0.0, 1.0)) if name == "DDIMScheduler" else 0.0
    return config, steps, eta
