// decode FILE…: reads every YAML document as the Kubernetes type that it says it is, strictly: an unknown or repeated
// field or a value of another type is an error. Exits with 1 if there was one.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"
)

// What of agents.x-k8s.io/v1beta1 we write.
type sandbox struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Service        bool         `json:"service"`
		ShutdownTime   *metav1.Time `json:"shutdownTime,omitempty"`
		ShutdownPolicy string       `json:"shutdownPolicy,omitempty"`
		PodTemplate    struct {
			Metadata struct {
				Labels      map[string]string `json:"labels,omitempty"`
				Annotations map[string]string `json:"annotations,omitempty"`
			} `json:"metadata"`
			Spec corev1.PodSpec `json:"spec"`
		} `json:"podTemplate"`
	} `json:"spec"`
}

func decode(document []byte, decoder runtime.Decoder) error {
	var kind metav1.TypeMeta
	if err := sigsyaml.Unmarshal(document, &kind); err != nil {
		return err
	}
	if kind.APIVersion == "agents.x-k8s.io/v1beta1" && kind.Kind == "Sandbox" {
		return sigsyaml.UnmarshalStrict(document, &sandbox{})
	}
	_, _, err := decoder.Decode(document, nil, nil)
	return err
}

func main() {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	status, count := 0, 0
	for _, name := range os.Args[1:] {
		content, err := os.ReadFile(name)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
		for {
			document, err := reader.Read()
			if err == io.EOF {
				break
			}
			if err == nil && !bytes.Contains(document, []byte("apiVersion")) {
				continue // comments alone
			}
			count++
			if err == nil {
				err = decode(document, decoder)
			}
			if err != nil {
				fmt.Printf("%s: %v\n", name, err)
				status = 1
			}
		}
	}
	if count == 0 {
		fmt.Println("no document in", os.Args[1:])
		status = 1
	}
	os.Exit(status)
}
