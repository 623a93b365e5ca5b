PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test test-all lint format clean

$(READY): requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Train on the built-in shapes set, evaluate, draw predictions. Starts afresh each time.
quickstart: $(READY)
	rm -rf $(RUNS)/quickstart
	$(BIN)/python train.py --flagfile=configs/quickstart.flags --model_dir=$(RUNS)/quickstart
	$(BIN)/python evaluate.py --model_dir=$(RUNS)/quickstart --output=$(RUNS)/quickstart/evaluation
	$(BIN)/python predict.py --model_dir=$(RUNS)/quickstart --input=$(RUNS)/quickstart/shapes/val --output=$(RUNS)/quickstart/predictions
	@echo
	@echo "Model, checkpoints, TensorBoard logs:  $(RUNS)/quickstart"
	@echo "Scores:                                $(RUNS)/quickstart/evaluation"
	@echo "Pictures with masks, results as JSON:  $(RUNS)/quickstart/predictions"

test: $(READY)
	$(BIN)/python -m pytest

test-all: $(READY)
	$(BIN)/python -m pytest -m ""

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(RUNS)
