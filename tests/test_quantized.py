"""Discrete latents: quantisers, the prior of the codes, and the models that have both."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.sharding import Mesh
from runs import train
from small import keys_of

import jaxvae
from jaxvae.config import PRESETS, Config
from jaxvae.explore import model as explore
from jaxvae.metrics import CodeUsage, Subject
from jaxvae.models.build import build_model
from jaxvae.models.code_prior import CodePrior
from jaxvae.models.quantized import Quantized, QuantizedVAE
from jaxvae.models.quantizers import DEAD, DECAY, FiniteScalarQuantizer, VectorQuantizer, nearest, perplexity
from jaxvae.objectives.base import Context
from jaxvae.objectives.build import build_objective, loss_of
from jaxvae.objectives.vq import Vq
from jaxvae.optimizer import build_optimizer
from jaxvae.protocols import PixelDistribution
from jaxvae.train.step import init_state, make_train_step
from jaxvae.trained import TrainedRun

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(3)
SHAPE = (6, 8, 1)
SMALL: dict[str, Any] = {
    "hidden": (8,),
    "batch_size": 8,
    "code_prior_width": 8,
    "code_prior_layers": 1,
    "validation": 0.0,
}


def config_of(objective: str, **changes: Any) -> Config:
    own = {"vq": {"codes": 12, "code_size": 4}, "fsq": {"levels": (4, 3)}}[objective]
    preset = PRESETS["vq-vae" if objective == "vq" else "fsq"]
    return dataclasses.replace(preset, **{**SMALL, **own, **changes})


def initial(config: Config, **kinds: Any) -> tuple[QuantizedVAE, Any]:
    model = build_model(config, SHAPE)
    assert isinstance(model, QuantizedVAE)
    return model, jax.jit(lambda: init_state(model, build_optimizer(config), KEY, **kinds))()


def images(count: int = 8) -> Any:
    return np.float32(np.random.default_rng(0).uniform(size=(count, *SHAPE)))


# --- Quantisers ---------------------------------------------------------------------------------------------


def test_the_nearest_code_is_that_of_a_search_through_all() -> None:
    rng = np.random.default_rng(1)
    features, codebook = rng.normal(size=(3, 7, 4)), rng.normal(size=(9, 4))
    expected = np.square(features[:, :, None] - codebook).sum(-1).argmin(-1)
    np.testing.assert_array_equal(nearest(jnp.float32(features), jnp.float32(codebook)), expected)


def test_perplexity() -> None:
    assert float(perplexity(jnp.float32([1, 1, 1, 1, 0]))) == pytest.approx(4)
    assert float(perplexity(jnp.zeros(5))) == 1
    p = np.array([0.7, 0.2, 0.1])
    assert float(perplexity(jnp.float32(3 * p))) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_fsq_rounds_to_the_nearest_level_within_bounds() -> None:
    levels = (8, 5, 3)
    quantizer = FiniteScalarQuantizer(120, levels)
    features = np.random.default_rng(2).normal(0, 3, (4, 50, 3))
    (codes, vectors), variables = quantizer.init_with_output(KEY, jnp.float32(features), method="quantize")
    expected = np.empty_like(features)
    for i, level in enumerate(levels):
        # Section 3 and appendix A.1, in float64: a tanh over `level` values, moved so that 0 gives a level.
        half, offset = (level - 1) * (1 + 1e-3) / 2, 0.0 if level % 2 else 0.5
        bounded = half * np.tanh(features[..., i] + np.arctanh(offset / half)) - offset
        grid = np.arange(level) - level // 2
        expected[..., i] = grid[np.abs(bounded[..., None] - grid).argmin(-1)] / (level // 2)
    np.testing.assert_allclose(vectors, expected, rtol=1e-6)
    np.testing.assert_array_equal(quantizer.apply(variables, codes, method="embed"), vectors)
    zero = quantizer.apply(variables, jnp.zeros((1, 1, 3)), method="quantize")[1]
    np.testing.assert_array_equal(zero, np.zeros((1, 1, 3)))


def test_every_fsq_code_has_a_vector_of_its_own_and_can_be_reached() -> None:
    quantizer = FiniteScalarQuantizer(36, (4, 3, 3))
    codes = jnp.arange(36)[None]
    vectors, variables = quantizer.init_with_output(KEY, codes, method="embed")
    assert len(np.unique(vectors[0], axis=0)) == 36
    # A vector is reached by features whose bounded values are near it.
    far = np.stack(np.meshgrid(*[np.linspace(-4, 4, 60)] * 3), -1).reshape(1, -1, 3)
    reached = quantizer.apply(variables, jnp.float32(far), method="quantize")[0]
    np.testing.assert_array_equal(np.unique(reached), np.arange(36))


def test_fsq_passes_the_gradient_of_its_bound() -> None:
    quantizer = FiniteScalarQuantizer(5, (5,))
    x, step = 0.4, 1e-4
    variables = quantizer.init(KEY, jnp.zeros((1, 1, 1)), method="quantize")
    found = jax.grad(lambda v: quantizer.apply(variables, v[None, None, None], method="quantize")[1].sum())(x)
    bound = [2 * (1 + 1e-3) * np.tanh(value) / 2 for value in (x - step, x + step)]
    assert float(found) == pytest.approx((bound[1] - bound[0]) / (2 * step), rel=1e-4)


@pytest.mark.long
def test_the_codebook_moves_as_the_formula_says() -> None:
    """Appendix A.1, in float64; no code is so rare that it is restarted."""
    quantizer = VectorQuantizer(3, 2)
    features = np.random.default_rng(4).normal(size=(40, 2))
    variables = jax.device_get(quantizer.init(KEY, jnp.zeros((1, 1, 2)), method="quantize"))
    frequencies, sums = (np.float64(variables["codebook"][name]) for name in ("frequencies", "sums"))
    for _ in range(3):
        _, changed = quantizer.apply(variables, jnp.float32(features), KEY, method="update", mutable=["codebook"])
        chosen = np.square(features[:, None] - (sums / frequencies[:, None])).sum(-1).argmin(-1)
        for code in range(3):
            frequencies[code] = DECAY * frequencies[code] + (1 - DECAY) * (chosen == code).mean()
            sums[code] = DECAY * sums[code] + (1 - DECAY) * features[chosen == code].sum(0) / len(features)
        variables = {**variables, **changed}
    np.testing.assert_allclose(variables["codebook"]["frequencies"], frequencies, rtol=1e-5)
    np.testing.assert_allclose(variables["codebook"]["sums"], sums, rtol=1e-4, atol=1e-6)


def test_a_dead_code_is_restarted_at_a_vector_of_the_batch() -> None:
    quantizer = VectorQuantizer(4, 2)
    features = np.float32(np.random.default_rng(5).normal(size=(30, 2)))
    rare = np.float32([0.5, 0.49, 0.01 * DEAD, 0.25 * DEAD * 0.9])
    variables = {
        "codebook": {"frequencies": rare, "sums": np.float32([[0, 0], [1, 1], [90, 90], [-90, 90]]) * rare[:, None]}
    }
    _, changed = quantizer.apply(variables, features, KEY, method="update", mutable=["codebook"])
    book = changed["codebook"]
    vectors = np.asarray(book["sums"]) / np.asarray(book["frequencies"])[:, None]
    for code in (2, 3):
        assert np.abs(features - vectors[code]).sum(1).min() < 1e-6
        assert float(book["frequencies"][code]) == 0.25
    assert np.abs(features - vectors[0]).sum(1).min() > 1e-4  # It is an average of many.


# --- The prior of the codes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prior() -> tuple[CodePrior, Any, Any]:
    """A prior with random weights, and all sequences of three of its codes."""
    module = CodePrior(codes=3, places=3, layers=2, width=8, classes=2)
    sequences = jnp.int32(list(itertools.product(range(3), repeat=3)))
    label = jnp.zeros(27, jnp.int32)
    variables = module.init(KEY, sequences, label, method="logits")
    rng = np.random.default_rng(6)
    return module, jax.tree.map(lambda a: jnp.float32(rng.normal(0, 0.5, a.shape)), variables), sequences


@pytest.mark.slow
@pytest.mark.parametrize("label", [0, 1])
def test_the_probabilities_of_all_sequences_sum_to_one(label: int, prior: tuple[CodePrior, Any, Any]) -> None:
    module, variables, sequences = prior
    log_p = module.apply(variables, sequences, jnp.full(27, label), method="log_probability")
    assert float(jnp.exp(log_p).sum()) == pytest.approx(1, rel=1e-5)
    assert float(log_p.max() - log_p.min()) > 0.5


@pytest.mark.slow
def test_a_place_sees_only_those_before_it(prior: tuple[CodePrior, Any, Any]) -> None:
    module, variables, sequences = prior
    logits = module.apply(variables, sequences, jnp.zeros(27, jnp.int32), method="logits")
    for place in range(3):
        for start in np.unique(sequences[:, :place], axis=0):
            same = (np.asarray(sequences)[:, :place] == start).all(1)
            assert np.ptp(np.asarray(logits)[same, place], axis=0).max() < 1e-5
    assert np.ptp(np.asarray(logits)[:, 2], axis=0).max() > 0.1


@pytest.mark.slow
def test_samples_have_the_probabilities_of_their_sequences(prior: tuple[CodePrior, Any, Any]) -> None:
    module, variables, sequences = prior
    count = 20_000
    p = np.exp(module.apply(variables, sequences, jnp.ones(27, jnp.int32), method="log_probability"))
    drawn = jax.jit(lambda: module.apply(variables, KEY, count, jnp.ones(count, jnp.int32), method="sample"))()
    found = np.bincount(np.asarray(drawn) @ [9, 3, 1], minlength=27)
    chi_squared = (np.square(found - count * p) / (count * p)).sum()
    assert chi_squared < 54.1  # Of 26 degrees of freedom, one in a thousand is above.


@pytest.mark.slow
@pytest.mark.parametrize("width", [8, 64])
def test_codes_are_drawn_from_the_logits_of_whole_sequences(width: int) -> None:
    """Drawing keeps what each place has computed; here all places are computed again for each."""
    module = CodePrior(codes=5, places=7, layers=2, width=width, classes=3)
    count, label = 40, jnp.arange(40) % 3
    variables = module.init(KEY, jnp.zeros((1, 7), jnp.int32), label[:1], method="logits")
    rng = np.random.default_rng(8)
    variables = jax.tree.map(lambda a: jnp.float32(rng.normal(0, 0.4, a.shape)), variables)
    drawn = module.apply(variables, KEY, count, label, method="sample")
    whole = jax.jit(lambda codes: module.apply(variables, codes, label, method="logits"))
    codes = np.zeros((count, 7), np.int32)
    for place in range(7):
        logits = whole(codes)[:, place]
        codes[:, place] = jax.random.categorical(jax.random.fold_in(KEY, place), logits)
    np.testing.assert_array_equal(codes, drawn)
    assert len(np.unique(codes, axis=0)) > 30


def test_a_uniform_prior_has_no_parameters() -> None:
    module = CodePrior(codes=5, places=4, layers=0)
    log_p, variables = module.init_with_output(KEY, jnp.zeros((2, 4), jnp.int32), method="log_probability")
    np.testing.assert_allclose(log_p, -4 * np.log(5), rtol=1e-6)
    assert not variables
    drawn = module.apply({}, KEY, 2000, method="sample")
    assert np.bincount(np.asarray(drawn).ravel(), minlength=5).min() > 1400


# --- The models ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["vq", "fsq"])
def test_the_bound_is_that_of_the_decoded_codes_and_their_prior(objective: str) -> None:
    config = config_of(objective)
    model, state = initial(config)
    x, loss = images(), build_objective(config)
    variables = state.variables
    terms, _ = loss.of(model, state.params, {"image": x}, keys_of(0, 8), Context(), state.collections)
    codes = model.apply(variables, x, method="codes")
    assert codes.shape == (8, 12) and codes.dtype == jnp.int32
    latent = model.apply(variables, codes, method="embed")
    np.testing.assert_allclose(latent, model.apply(variables, x, method="encode"), atol=1e-6)
    logits = np.float64(model.apply(variables, latent, method="decode"))
    nll = (np.logaddexp(0, logits) - x * logits).sum((1, 2, 3))
    log_p = model.apply(variables, lambda m: m.code_prior.log_probability(codes), method=lambda m, f: f(m))
    np.testing.assert_allclose(terms["unnormalised_elbo"], np.float64(log_p) - nll, rtol=1e-5)
    np.testing.assert_allclose(model.apply(variables, x).codes, codes)
    assert "perplexity" not in terms  # It is the training images'.


@pytest.mark.long
@pytest.mark.parametrize("codebook", ["average", "gradient"])
def test_the_loss_pulls_vectors_and_codes_together(codebook: str) -> None:
    """Equation 3, with the straight-through gradient, written out for one place."""
    config = config_of("vq", codebook=codebook, commitment=0.5)
    model, state = initial(config)
    loss, x = build_objective(config), images()
    found = model.apply(state.variables, {"image": x}, method="quantize")
    distance = np.square(np.float64(found.features) - np.float64(found.vectors)).sum((1, 2))
    terms, collections = loss.of(
        model, state.params, {"image": x}, keys_of(0, 8), Context(jnp.int32(0)), state.collections
    )
    weight = 0.5 + (codebook == "gradient")
    np.testing.assert_allclose(terms["loss"] - terms["recon"] - terms["kl"], weight * distance, rtol=1e-4, atol=1e-3)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), collections, state.collections)
    assert all(jax.tree.leaves(moved))
    gradient = jax.grad(
        lambda p: loss.of(model, p, {"image": x}, keys_of(0, 8), Context(jnp.int32(0)), state.collections)[0][
            "loss"
        ].sum()
    )(state.params)["params"]
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient["encoder"]))
    assert ("quantizer" in gradient) == (codebook == "gradient")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["vq", "fsq"])
def test_the_perplexity_of_a_train_line(objective: str) -> None:
    """Of vq: of the codes of the batch, whatever was restarted. Of fsq: of the codes of the batches before it."""
    config = config_of(objective)
    model, state = initial(config)
    loss, x, collections = build_objective(config), images(), state.collections
    codes = np.asarray(model.apply(state.variables, x, method="codes")).ravel()
    told = []
    of = jax.jit(lambda step, used: loss.of(model, state.params, {"image": x}, keys_of(0, 8), Context(step), used))
    for step in range(2):
        terms, collections = of(jnp.int32(step), collections)
        told.append(terms["perplexity"])
    expected = np.exp(scipy.stats.entropy(np.bincount(codes)))
    assert expected < 11.9
    np.testing.assert_allclose(told[0], np.full(8, expected if objective == "vq" else 1.0), rtol=1e-5)
    if objective == "fsq":
        np.testing.assert_allclose(told[1], np.full(8, expected), rtol=1e-5)


@pytest.mark.parametrize("codebook", ["average", "gradient"])
def test_gradients_pass_the_quantiser_and_meet_in_the_cost(codebook: str) -> None:
    """The straight-through estimator, and the second and third term of equation 3, each with its own weight."""
    objective = Vq(codes=5, code_size=2, codebook=codebook, commitment=0.3)
    quantizer = objective.quantizer()
    rng = np.random.default_rng(7)
    features, weights = jnp.float32(rng.normal(size=(2, 3, 4, 2)))
    variables = quantizer.init(KEY, features, method="quantize")

    def decoded(features: jax.Array, variables: Any) -> jax.Array:
        vectors = quantizer.apply(variables, features, method="quantize")[1]
        return (weights * quantizer.apply(variables, features, vectors, method="through")).sum()

    by_features, by_codebook = jax.grad(decoded, (0, 1))(features, variables)
    np.testing.assert_allclose(by_features, weights, rtol=1e-6)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(by_codebook))

    vectors = quantizer.apply(variables, features, method="quantize")[1]

    def cost(features: jax.Array, vectors: jax.Array) -> jax.Array:
        nothing = jnp.zeros(())
        return objective.cost(Quantized(PixelDistribution(nothing), features, vectors, nothing)).sum()

    by_features, by_vectors = jax.grad(cost, (0, 1))(features, vectors)
    np.testing.assert_allclose(by_features, 2 * 0.3 * (features - vectors), rtol=1e-5)
    np.testing.assert_allclose(by_vectors, (codebook == "gradient") * 2 * (vectors - features), rtol=1e-5)


@pytest.mark.long
def test_the_codebook_is_the_same_on_all_devices_and_that_of_one() -> None:
    """Restarts included: many codes are dead after some steps."""
    config = config_of("vq", codes=40)
    model, first = initial(config)
    parts = model, build_objective(config, 1, 100), optax.sgd(1e-4)
    state = first._replace(opt_state=parts[2].init(first.params))
    state.collections["codebook"]["quantizer"]["frequencies"] = jnp.full(40, 0.9 * DEAD / 40).at[0].set(1.0)
    one, several = jax.jit(make_train_step(*parts)), None
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    specs = {"in_specs": (jax.P(), jax.P("data"), jax.P()), "out_specs": jax.P()}
    several = jax.jit(jax.shard_map(make_train_step(*parts, axis_name="data"), mesh=mesh, check_vma=False, **specs))
    a = b = state
    for _ in range(3):
        a, b = one(a, images(), jax.random.key(1))[0], several(b, images(), jax.random.key(1))[0]
    for x, y in zip(jax.tree.leaves(a.collections), jax.tree.leaves(b.collections), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-7)
        copies = [np.asarray(shard.data).tobytes() for shard in y.addressable_shards]
        assert len(copies) == 4 and len(set(copies)) == 1


# --- Training -----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_trained_model_encodes_to_codes_and_draws_images_of_a_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = np.int32(np.arange(64) % 2)
    dark_or_bright = np.uint8(np.clip(rng.normal(40 + 170 * label[:, None, None], 8, (64, 8, 8)), 0, 255))
    result = jaxvae.fit(
        "fsq", data={"image": dark_or_bright, "label": label}, condition="label", epochs=60, learning_rate=1e-2,
        run_dir=tmp_path / "run", **{**SMALL, "levels": (4, 3), "hidden": (8, 8)},
    )  # fmt: skip
    run = result.run
    drawn = run.sample(8, label=[0] * 4 + [1] * 4)
    assert drawn[:4].mean() < 0.3 and drawn[4:].mean() > 0.6
    latents = run.encode(dark_or_bright[:4], label=label[:4])
    np.testing.assert_allclose(
        run.decode(latents, label=label[:4]), run.reconstruct(dark_or_bright[:4], label=label[:4]) / 255, atol=3e-3
    )
    codes = run.codes(dark_or_bright[:4], label=label[:4])
    assert codes.shape == (4, 2, 2) and codes.dtype == np.int32 and codes.max() < 12

    shown = explore.explored(
        tmp_path / "run",
        images=explore.Tested({"image": dark_or_bright[..., None], "label": label}, np.arange(64), ()),
    )
    colours = np.concatenate([shown.code_map(number).reshape(4, 3) for number in range(4)])  # type: ignore[union-attr]
    pairs = {(int(code), tuple(colour)) for code, colour in zip(codes.ravel(), colours.tolist(), strict=True)}
    assert len(pairs) == len(np.unique(codes)) == len(np.unique(colours, axis=0))
    assert not shown.has_temperature and shown.samples(0, label=1).mean() > 150


@pytest.mark.long
def test_the_usage_of_codes_is_counted_over_all_images() -> None:
    config = config_of("vq")
    model, state = initial(config)
    shown = np.uint8(255 * images(5))
    found = CodeUsage().measure(
        Subject(TrainedRun(config, model, state.variables, 0, SHAPE, {}), loss_of(config)),
        {"image": shown},
        jax.random.key(0),
    )
    codes = np.asarray(model.apply(state.variables, shown / np.float32(255), method="codes")).ravel().tolist()
    assert found["codes_used"].value == len(set(codes))
    p = [codes.count(code) / len(codes) for code in set(codes)]
    assert found["code_perplexity"].value == pytest.approx(float(np.exp(scipy.stats.entropy(p))), rel=1e-9)
    plain = PRESETS["vae"]
    other = Subject(TrainedRun(plain, build_model(plain, SHAPE), {}, 0, SHAPE, {}), loss_of(plain))
    assert CodeUsage().measure(other, {}, KEY) == {}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--objective", "vq"], "--objective vq needs --latents spatial (--architecture conv or resnet)"),
        (["--preset", "vq-vae", "--latent-size", "12"], "--latent-size 12 has no effect: it needs --objective"),
        (["--preset", "fsq", "--levels", "1"], "--levels must be from 3 to 256 levels"),
        (["--preset", "fsq", "--codes", "64"], "--codes 64 has no effect: it needs --objective vq"),
        (["--preset", "fsq", "--code-prior-layers", "0", "--code-prior-width", "8"], "--code-prior-width 8 has no"),
        (["--preset", "vq-vae", "--prior", "label"], "--prior label has no effect"),
        (["--preset", "vq-vae", "--ema", "0.9"], "--ema needs --codebook gradient"),
        (["--preset", "fsq", "--model", "own_parts:Net"], "--objective fsq trains a model of its own"),
    ],
)  # fmt: skip
def test_conflicting_flags_are_refused(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*flags, "--dataset", "digits", "--run-dir", str(tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
