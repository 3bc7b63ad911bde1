import keras
import numpy as np
import tensorflow as tf

from zoo.training.statistics import RefreshStatistics, refresh_statistics


def model_and_data():
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(momentum=0.5), keras.layers.Dense(1)])
    x = np.random.default_rng(0).normal([1, -2, 5], [1, 2, 3], (4000, 3)).astype("float32")
    return model, x, tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(200)


def test_moving_averages_become_those_of_the_data():
    model, x, data = model_and_data()
    norm, dense = model.layers
    before = [np.array(weight) for weight in (norm.gamma, norm.beta, dense.kernel, dense.bias)]
    refresh_statistics(model, data)

    np.testing.assert_allclose(norm.moving_mean, x.mean(0), atol=0.4)
    np.testing.assert_allclose(norm.moving_variance, x.var(0), rtol=0.2)
    for weight, value in zip((norm.gamma, norm.beta, dense.kernel, dense.bias), before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_only_so_many_batches_are_read():
    model, _, data = model_and_data()
    seen = []
    refresh_statistics(
        model, data.map(lambda x, y: (tf.py_function(lambda t: seen.append(1) or t, [x], x.dtype), y)), 3
    )

    # A batch more may have been fetched ahead
    assert len(seen) == 3


def test_a_model_without_normalisation_is_not_run():
    def refuse():
        raise AssertionError("read")
        yield

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    refresh_statistics(model, tf.data.Dataset.from_generator(refuse, output_signature=tf.TensorSpec((2, 3))))


def test_validation_sees_fresh_statistics():
    model, x, data = model_and_data()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(data.take(1), validation_data=data, verbose=0, callbacks=[RefreshStatistics(data)])

    np.testing.assert_allclose(model.layers[0].moving_mean, x.mean(0), atol=0.4)
