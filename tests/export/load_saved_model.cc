// Loads a SavedModel as TensorFlow Serving does, sends it image files in one batch, prints a line for each: what is wrong
// with it, or its scores.
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/public/session_options.h"

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  tensorflow::SavedModelBundle bundle;
  auto status =
      tensorflow::LoadSavedModel(tensorflow::SessionOptions(), tensorflow::RunOptions(), argv[1], {"serve"}, &bundle);
  if (!status.ok()) {
    std::cerr << status.ToString() << std::endl;
    return 1;
  }
  tensorflow::Tensor input(tensorflow::DT_STRING, tensorflow::TensorShape({argc - 2}));
  for (int i = 2; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    std::stringstream bytes;
    bytes << file.rdbuf();
    input.flat<tensorflow::tstring>()(i - 2) = bytes.str();
  }
  const auto& signature = bundle.GetSignatures().at("serving_default");
  const auto& outputs = signature.outputs();
  std::vector<tensorflow::Tensor> values;
  status = bundle.GetSession()->Run({{signature.inputs().at("image_bytes").name(), input}},
                                    {outputs.at("image_errors").name(), outputs.at("detection_scores").name()}, {},
                                    &values);
  if (!status.ok()) {
    std::cerr << status.ToString() << std::endl;
    return 1;
  }
  const auto errors = values[0].flat<tensorflow::tstring>();
  const auto scores = values[1].matrix<float>();
  for (int i = 0; i < errors.size(); ++i) {
    std::cout << std::string(errors(i));
    if (errors(i).empty()) {
      for (int j = 0; j < scores.dimension(1); ++j) std::cout << scores(i, j) << " ";
    }
    std::cout << "\n";
  }
  return 0;
}
