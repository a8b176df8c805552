"""Table of the twelve 2D MedMNIST v2 data sets.

It has each set's task, classes, licence, numbers of images and, for each size,
URL and MD5 of the official file. It is separate from the builder, so that names
and classes are available without importing TFDS.

Source: `medmnist/info.py` of the medmnist package 3.0.2
(github.com/MedMNIST/MedMNIST), which points to Zenodo record 10519652. The
citations are those of its README. The README asks to cite the source of each
set as well (listed at https://medmnist.github.io).

>>> BY_NAME['breastmnist'].class_names
('malignant', 'normal, benign')
>>> BY_NAME['breastmnist'].file_name(64)
'breastmnist_64.npz'
"""

from __future__ import annotations

import dataclasses

HOMEPAGE = 'https://github.com/MedMNIST/MedMNIST/'
BASE_URL = 'https://zenodo.org/records/10519652/files/'
IMAGE_SIZES = (28, 64, 128, 224)
CITATION = """\
@article{medmnistv2,
  title={MedMNIST v2-A large-scale lightweight benchmark for 2D and 3D biomedical image classification},
  author={Yang, Jiancheng and Shi, Rui and Wei, Donglai and Liu, Zequan and Zhao, Lin and Ke, Bilian and Pfister, Hanspeter and Ni, Bingbing},
  journal={Scientific Data},
  volume={10},
  number={1},
  pages={41},
  year={2023},
  publisher={Nature Publishing Group UK London}
}
@inproceedings{medmnistv1,
  title={MedMNIST Classification Decathlon: A Lightweight AutoML Benchmark for Medical Image Analysis},
  author={Yang, Jiancheng and Shi, Rui and Ni, Bingbing},
  booktitle={IEEE 18th International Symposium on Biomedical Imaging (ISBI)},
  pages={191--195},
  year={2021}
}
"""


@dataclasses.dataclass(frozen=True)
class MedMnistInfo:
  """One data set.

  Attributes:
    name: Name of the set, as in the file names.
    task: Task in medmnist's terms, e.g. `binary-class`.
    channels: Number of channels, 1 (grey) or 3 (RGB).
    license: Licence of the images.
    counts: Official numbers of train, validation and test images.
    class_names: Name of each label or, for chestmnist, of each finding.
    md5: MD5s of the official files, one for each of `IMAGE_SIZES`.
  """

  name: str
  task: str
  channels: int
  license: str
  counts: tuple[int, int, int]
  class_names: tuple[str, ...]
  md5: tuple[str, str, str, str]

  @property
  def multi_label(self) -> bool:
    """Whether an image may have several findings, or none."""
    return self.task.startswith('multi-label')

  def official_md5(self, image_size: int) -> str:
    """Returns the MD5 of the official file of that size."""
    return self.md5[IMAGE_SIZES.index(image_size)]

  def file_name(self, image_size: int) -> str:
    """Returns the name of the official file of that size."""
    suffix = '' if image_size == 28 else f'_{image_size}'
    return f'{self.name}{suffix}.npz'

  def url(self, image_size: int) -> str:
    """Returns the URL of the official file of that size."""
    return f'{BASE_URL}{self.file_name(image_size)}?download=1'


_ORGANS = (
  'bladder',
  'femur-left',
  'femur-right',
  'heart',
  'kidney-left',
  'kidney-right',
  'liver',
  'lung-left',
  'lung-right',
  'pancreas',
  'spleen',
)

_ALL = (
  MedMnistInfo(
    name='pathmnist',
    task='multi-class',
    channels=3,
    license='CC BY 4.0',
    counts=(89996, 10004, 7180),
    class_names=(
      'adipose',
      'background',
      'debris',
      'lymphocytes',
      'mucus',
      'smooth muscle',
      'normal colon mucosa',
      'cancer-associated stroma',
      'colorectal adenocarcinoma epithelium',
    ),
    md5=(
      'a8b06965200029087d5bd730944a56c1',
      '55aa9c1e0525abe5a6b9d8343a507616',
      'ac42d08fb904d92c244187169d1fd1d9',
      '2c51a510bcdc9cf8ddb2af93af1eadec',
    ),
  ),
  MedMnistInfo(
    name='chestmnist',
    task='multi-label, binary-class',
    channels=1,
    license='CC BY 4.0',
    counts=(78468, 11219, 22433),
    class_names=(
      'atelectasis',
      'cardiomegaly',
      'effusion',
      'infiltration',
      'mass',
      'nodule',
      'pneumonia',
      'pneumothorax',
      'consolidation',
      'edema',
      'emphysema',
      'fibrosis',
      'pleural',
      'hernia',
    ),
    md5=(
      '02c8a6516a18b556561a56cbdd36c4a8',
      '9de6cd0b934ebb5b7426cfba5efbae16',
      'db107e5590b27930b62dbaf558aebee3',
      '45bd33e6f06c3e8cdb481c74a89152aa',
    ),
  ),
  MedMnistInfo(
    name='dermamnist',
    task='multi-class',
    channels=3,
    license='CC BY-NC 4.0',
    counts=(7007, 1003, 2005),
    class_names=(
      'actinic keratoses and intraepithelial carcinoma',
      'basal cell carcinoma',
      'benign keratosis-like lesions',
      'dermatofibroma',
      'melanoma',
      'melanocytic nevi',
      'vascular lesions',
    ),
    md5=(
      '0744692d530f8e62ec473284d019b0c7',
      'b70a2f5635c6199aeaa28c31d7202e1f',
      '2defd784463fa5243564e855ed717de1',
      '8974907d8e169bef5f5b96bc506ae45d',
    ),
  ),
  MedMnistInfo(
    name='octmnist',
    task='multi-class',
    channels=1,
    license='CC BY 4.0',
    counts=(97477, 10832, 1000),
    class_names=(
      'choroidal neovascularization',
      'diabetic macular edema',
      'drusen',
      'normal',
    ),
    md5=(
      'c68d92d5b585d8d81f7112f81e2d0842',
      'e229e9440236b774d9f0dfef9d07bdaf',
      '0a97e76651ace45c5d943ee3f65b63ae',
      'abc493b6d529d5de7569faaef2773ba3',
    ),
  ),
  MedMnistInfo(
    name='pneumoniamnist',
    task='binary-class',
    channels=1,
    license='CC BY 4.0',
    counts=(4708, 524, 624),
    class_names=(
      'normal',
      'pneumonia',
    ),
    md5=(
      '28209eda62fecd6e6a2d98b1501bb15f',
      '8f4eceb4ccffa70c672198ea285246c6',
      '05b46931834c231683c68f40c47b2971',
      'd6a3c71de1b945ea11211b03746c1fe1',
    ),
  ),
  MedMnistInfo(
    name='retinamnist',
    task='ordinal-regression',
    channels=3,
    license='CC BY 4.0',
    counts=(1080, 120, 400),
    class_names=(
      '0',
      '1',
      '2',
      '3',
      '4',
    ),
    md5=(
      'bd4c0672f1bba3e3a89f0e4e876791e4',
      'afda852cc34dcda56f86ad2b2457dbcc',
      'e48e916a24454daf90583d4e6efb1a18',
      'eae7e3b6f3fcbda4ae613ebdcbe35348',
    ),
  ),
  MedMnistInfo(
    name='breastmnist',
    task='binary-class',
    channels=1,
    license='CC BY 4.0',
    counts=(546, 78, 156),
    class_names=(
      'malignant',
      'normal, benign',
    ),
    md5=(
      '750601b1f35ba3300ea97c75c52ff8f6',
      '742edef2a1fd1524b2efff4bd7ba9364',
      '363e4b3f8d712e9b5de15470a2aaadf1',
      'b56378a6eefa9fed602bb16d192d4c8b',
    ),
  ),
  MedMnistInfo(
    name='bloodmnist',
    task='multi-class',
    channels=3,
    license='CC BY 4.0',
    counts=(11959, 1712, 3421),
    class_names=(
      'basophil',
      'eosinophil',
      'erythroblast',
      'immature granulocytes(myelocytes, metamyelocytes and promyelocytes)',
      'lymphocyte',
      'monocyte',
      'neutrophil',
      'platelet',
    ),
    md5=(
      '7053d0359d879ad8a5505303e11de1dc',
      '2b94928a2ae4916078ca51e05b6b800b',
      'adace1e0ed228fccda1f39692059dd4c',
      'b718ff6835fcbdb22ba9eacccd7b2601',
    ),
  ),
  MedMnistInfo(
    name='tissuemnist',
    task='multi-class',
    channels=1,
    license='CC BY 4.0',
    counts=(165466, 23640, 47280),
    class_names=(
      'Collecting Duct, Connecting Tubule',
      'Distal Convoluted Tubule',
      'Glomerular endothelial cells',
      'Interstitial endothelial cells',
      'Leukocytes',
      'Podocytes',
      'Proximal Tubule Segments',
      'Thick Ascending Limb',
    ),
    md5=(
      'ebe78ee8b05294063de985d821c1c34b',
      '123ece2eba09d0aa5d698fda57103344',
      '61b955355d7425a89687b06cca3ce0c2',
      'b077128c4a949f0a4eb01517f9037b9c',
    ),
  ),
  MedMnistInfo(
    name='organamnist',
    task='multi-class',
    channels=1,
    license='CC BY 4.0',
    counts=(34561, 6491, 17778),
    class_names=_ORGANS,
    md5=(
      '68e3f8846a6bd62f0c9bf841c0d9eacc',
      '2dcccc29b88e6da5a01161ef20cda288',
      'eeae80d0a227a8d099027e1b3cfd3b60',
      '50747347e05c87dd3aaf92c49f9f3170',
    ),
  ),
  MedMnistInfo(
    name='organcmnist',
    task='multi-class',
    channels=1,
    license='CC BY 4.0',
    counts=(12975, 2392, 8216),
    class_names=_ORGANS,
    md5=(
      'b9ceb9546e10131b32923c5bbeaea2b1',
      '3ce34a8724ea6f548e6db4744d03b6a9',
      '773c1f009daa3fe5d9a2a201b2a7ed94',
      '050f5e875dc056f6768abf94ec9995d1',
    ),
  ),
  MedMnistInfo(
    name='organsmnist',
    task='multi-class',
    channels=1,
    license='CC BY 4.0',
    counts=(13932, 2452, 8827),
    class_names=_ORGANS,
    md5=(
      '9ab87b696fb54e2a387ebe992d6ed5f1',
      '53a6d115339d874c25e309a994ff46d3',
      'ded0c5fa01a95dc4978b956f613e9b8e',
      'b354719e553fbbb2513d5533f52a4cb1',
    ),
  ),
)

BY_NAME = {info.name: info for info in _ALL}
