// Objects of a photograph by REST: go run client.go http://localhost:8501 mine photo.jpg
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"
)

type image struct {
	B64 []byte `json:"b64"` // encoding/json writes bytes in base64
}

type row struct {
	Count   float64      `json:"num_detections"`
	Boxes   [][4]float64 `json:"detection_boxes"`
	Scores  []float64    `json:"detection_scores"`
	Classes []float64    `json:"detection_classes"`
	Size    [2]float64   `json:"image_sizes"`
	Problem string       `json:"image_errors"`
}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: client URL MODEL FILE")
	}
	data, err := os.ReadFile(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	body, err := json.Marshal(map[string][]image{"instances": {{data}}})
	if err != nil {
		log.Fatal(err)
	}
	client := http.Client{Timeout: time.Minute}
	answer, err := client.Post(os.Args[1]+"/v1/models/"+os.Args[2]+":predict", "application/json", bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	var tree struct {
		Rows  []row  `json:"predictions"`
		Error string `json:"error"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&tree); err != nil {
		log.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK || len(tree.Rows) != 1 {
		log.Fatalf("%s: %s", answer.Status, tree.Error)
	}
	found := tree.Rows[0]
	if found.Problem != "" {
		log.Fatal(found.Problem)
	}
	for i := 0; i < int(found.Count); i++ {
		b := found.Boxes[i]
		fmt.Printf("%g %.3f %.1f %.1f %.1f %.1f\n", found.Classes[i], found.Scores[i],
			b[0]*found.Size[0], b[1]*found.Size[1], b[2]*found.Size[0], b[3]*found.Size[1])
	}
}
