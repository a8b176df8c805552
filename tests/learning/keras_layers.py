"""Small Keras models that together hold every Keras layer with weights."""

import collections

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import models

layers = tf.keras.layers

CLASSES = 3

_ROW = (4,)
_SEQUENCE = (5, 4)
_IMAGE = (6, 5, 2)
_VOXELS = (4, 5, 4, 2)
_TOKENS = 'tokens'

# Input shape, and function of the input that holds the layer.
EXACT = {
  'additive_attention': (
    _SEQUENCE,
    lambda x: layers.AdditiveAttention()([layers.Dense(3)(x)] * 2),
  ),
  'attention': (
    _SEQUENCE,
    lambda x: layers.Attention(use_scale=True, score_mode='concat')(
      [layers.Dense(3)(x), layers.Dense(3)(x)]
    ),
  ),
  'bidirectional': (
    _SEQUENCE,
    lambda x: layers.Bidirectional(layers.LSTM(2))(x),
  ),
  'conv_1d': (_SEQUENCE, lambda x: layers.Conv1D(3, 2, padding='causal')(x)),
  'conv_1d_dilated': (
    _SEQUENCE,
    lambda x: layers.Conv1D(3, 2, dilation_rate=2)(x),
  ),
  'conv_1d_transposed': (_SEQUENCE, lambda x: layers.Conv1DTranspose(3, 2)(x)),
  'conv_2d': (_IMAGE, lambda x: layers.Conv2D(3, (2, 3))(x)),
  'conv_2d_dilated': (
    _IMAGE,
    lambda x: layers.Conv2D(3, 2, dilation_rate=2)(x),
  ),
  'conv_2d_grouped': (_IMAGE, lambda x: layers.Conv2D(4, 2, groups=2)(x)),
  'conv_2d_strided': (
    _IMAGE,
    lambda x: layers.Conv2D(3, 3, strides=2, padding='same')(x),
  ),
  'conv_2d_transposed': (
    _IMAGE,
    lambda x: layers.Conv2DTranspose(3, 2, strides=2)(x),
  ),
  'conv_3d': (_VOXELS, lambda x: layers.Conv3D(3, 2)(x)),
  'conv_3d_transposed': (_VOXELS, lambda x: layers.Conv3DTranspose(3, 2)(x)),
  'conv_lstm_1d': ((3, *_SEQUENCE), lambda x: layers.ConvLSTM1D(2, 2)(x)),
  'conv_lstm_2d': ((3, *_IMAGE), lambda x: layers.ConvLSTM2D(2, 2)(x)),
  'conv_lstm_3d': ((3, *_VOXELS), lambda x: layers.ConvLSTM3D(2, 2)(x)),
  'dense': (_ROW, lambda x: layers.Dense(3)(x)),
  'dense_on_a_sequence': (_SEQUENCE, lambda x: layers.Dense(3)(x)),
  'dense_shared': (_ROW, lambda x: _twice(layers.Dense(4), x)),
  'depthwise_1d': (_SEQUENCE, lambda x: layers.DepthwiseConv1D(2)(x)),
  'depthwise_2d': (_IMAGE, lambda x: layers.DepthwiseConv2D(2)(x)),
  'depthwise_2d_dilated': (
    _IMAGE,
    lambda x: layers.DepthwiseConv2D(2, dilation_rate=2)(x),
  ),
  'einsum_dense': (
    _SEQUENCE,
    lambda x: layers.EinsumDense('abc,cd->abd', (None, 3), bias_axes='d')(x),
  ),
  'embedding': (_TOKENS, lambda x: layers.Embedding(4, 3)(x)),
  'group_normalization': (_IMAGE, lambda x: layers.GroupNormalization(2)(x)),
  'gru': (_SEQUENCE, lambda x: layers.GRU(3)(x)),
  'gru_unrolled': (_SEQUENCE, lambda x: layers.GRU(2, unroll=True)(x)),
  'layer_normalization': (_IMAGE, lambda x: layers.LayerNormalization()(x)),
  'layer_normalization_of_images': (
    _IMAGE,
    lambda x: layers.LayerNormalization(axis=(1, 2, 3))(x),
  ),
  'locally_connected_1d': (
    _SEQUENCE,
    lambda x: layers.LocallyConnected1D(3, 2)(x),
  ),
  'locally_connected_2d': (
    _IMAGE,
    lambda x: layers.LocallyConnected2D(3, 2)(x),
  ),
  'locally_connected_2d_sparse': (
    _IMAGE,
    lambda x: layers.LocallyConnected2D(3, 2, implementation=3)(x),
  ),
  'lstm': (_SEQUENCE, lambda x: layers.LSTM(3)(layers.Masking()(x))),
  'multi_head_attention': (
    _SEQUENCE,
    lambda x: layers.MultiHeadAttention(2, 3)(x, x),
  ),
  'p_relu': (_IMAGE, lambda x: layers.PReLU()(_centred(x))),
  'p_relu_shared': (
    _IMAGE,
    lambda x: layers.PReLU(shared_axes=(1, 2))(_centred(x)),
  ),
  'recurrent_cells': (
    _SEQUENCE,
    lambda x: layers.RNN(
      layers.StackedRNNCells(
        [layers.LSTMCell(2), layers.GRUCell(2), layers.SimpleRNNCell(2)]
      )
    )(x),
  ),
  'separable_1d': (_SEQUENCE, lambda x: layers.SeparableConv1D(3, 2)(x)),
  'separable_2d': (_IMAGE, lambda x: layers.SeparableConv2D(3, 2)(x)),
  'simple_rnn': (_SEQUENCE, lambda x: layers.SimpleRNN(3)(x)),
  'time_distributed': (
    (3, *_IMAGE),
    lambda x: layers.TimeDistributed(layers.Conv2D(2, 2))(x),
  ),
}

# Layers whose weights are not trained, which `models.check_federated` refuses.
REFUSED = {
  'batch_normalization': (_IMAGE, lambda x: layers.BatchNormalization()(x)),
  'normalization': (_ROW, lambda x: layers.Normalization()(x)),
  'spectral_normalization': (
    _ROW,
    lambda x: layers.SpectralNormalization(layers.Dense(3))(x),
  ),
}

# Bases of other layers, and DenseFeatures, which has several inputs.
ABSTRACT = frozenset(
  ('AbstractRNNCell', 'DenseFeatures', 'Lambda', 'Layer', 'Wrapper')
)

WITHOUT_WEIGHTS = frozenset(
  """
  Activation ActivityRegularization Add AlphaDropout Average
  AveragePooling1D AveragePooling2D AveragePooling3D CategoryEncoding
  CenterCrop Concatenate Cropping1D Cropping2D Cropping3D Discretization Dot
  Dropout ELU Flatten GaussianDropout GaussianNoise GlobalAveragePooling1D
  GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D
  GlobalMaxPooling2D GlobalMaxPooling3D HashedCrossing Hashing Identity
  InputLayer IntegerLookup LeakyReLU Masking MaxPooling1D MaxPooling2D
  MaxPooling3D Maximum Minimum Multiply Permute RandomBrightness
  RandomContrast RandomCrop RandomFlip RandomHeight RandomRotation
  RandomTranslation RandomWidth RandomZoom ReLU RepeatVector Rescaling
  Reshape Resizing Softmax SpatialDropout1D SpatialDropout2D
  SpatialDropout3D StringLookup Subtract TextVectorization ThresholdedReLU UnitNormalization
  UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D
  ZeroPadding3D
  """.split()
)


# Keras layers alone: a model with a TensorFlow operation cannot be built in
# eager mode after TFF has built another one in a graph.


def _twice(layer, x):
  return layer(layers.Activation('tanh')(layer(x)))


def _centred(x):
  return layers.Rescaling(1.0, offset=-0.5)(x)


def keras_model(shape, apply):
  """Returns a model of a layer and a classifier on top of it."""
  if shape == _TOKENS:
    x = tf.keras.Input((5,), dtype=tf.int32)
  else:
    x = tf.keras.Input(shape)
  output = layers.Dense(CLASSES)(layers.Flatten()(apply(x)))
  return tf.keras.Model(x, output)


def functional(model):
  """Returns TFF's form of a model, with the weights that it has."""
  (x,) = model.inputs
  return tff.learning.models.functional_model_from_keras(
    model,
    models.loss(multi_label=False),
    collections.OrderedDict(
      x=tf.TensorSpec(x.shape, x.dtype), y=tf.TensorSpec((None,), tf.int64)
    ),
  )


def classes_with_weights(model):
  """Returns the names of the classes of a model's layers that have weights."""
  return {
    type(module).__name__
    for module in model.submodules
    if isinstance(module, layers.Layer) and module.weights
  }
