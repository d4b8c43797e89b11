"""The `kubernetes` section: how stages become Jobs and how vLLM is served. Nothing here changes a result or causes a re-run."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from itool.config_section import Count, CountOrZero, Rate, Section, Url
from itool.names import TRAINING_STAGES, StageName

Target = Literal["controller", "warmup", "score", "generate", "dpo", "evaluate", "vllm-cpu"]
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
DNS_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
METADATA_KEY = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
DnsLabel = Annotated[str, Field(pattern=DNS_LABEL)]
DnsName = Annotated[str, Field(pattern=DNS_NAME)]
MetadataKey = Annotated[str, Field(pattern=METADATA_KEY)]
LabelValue = Annotated[str, Field(pattern=LABEL_VALUE)]
Labels = dict[MetadataKey, LabelValue]
Annotations = dict[MetadataKey, str]


def _in_digits(value: Any) -> Any:
    """A number in the form that a quantity has: 2.0 is 2, and no number has an exponent."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return format(Decimal(str(value)), "f").removesuffix(".0") if is_number else value


Quantity = Annotated[
    str,
    BeforeValidator(_in_digits),
    Field(pattern=QUANTITY),
    WithJsonSchema({"type": ["string", "number"], "minimum": 0, "pattern": QUANTITY}),
]
"""A number needs no quotes here, as it means the same however it is written. As the tag of an image 1.10 is not 1.1, nor 007 the name 7."""


class PodConfig(Section):
    """What a pod asks for and where it may run."""

    gpus: CountOrZero | None = Field(
        None, description="GPUs per pod; null: 1 where the work needs one, else 0. In `pods` a number counts for such work only"
    )
    cpu: Quantity = Field("1", description="CPU request")
    cpu_limit: Quantity | None = Field(None, description="CPU limit; null: none")
    memory: Quantity = Field("2Gi", description="memory request, and the limit unless memory_limit is given")
    memory_limit: Quantity | None = Field(None, description="memory limit; null: the request")
    scratch: Quantity = Field("10Gi", description="size limit of the pod's scratch folder (an emptyDir), requested of the node's disk")
    shared_memory: Quantity = Field("1Gi", description="size of /dev/shm (a memory-backed emptyDir, counted as memory)")
    node_selector: Labels = Field(default_factory=dict, description="labels of the nodes that it may run on")
    tolerations: list[dict[str, Any]] = Field(default_factory=list, description="taints that it tolerates")
    affinity: dict[str, Any] = Field(default_factory=dict, description="where it would rather run, as in a pod's `affinity`")
    priority_class: DnsName | None = Field(None, description="priority class, which must exist")
    env: dict[str, str] = Field(default_factory=dict, description="extra environment variables; credentials belong into a Secret")
    volumes: list[dict[str, Any]] = Field(default_factory=list, description="extra volumes, as in a pod's `volumes`")
    volume_mounts: list[dict[str, Any]] = Field(default_factory=list, description="where the extra volumes are mounted")


class StagePodConfig(PodConfig):
    """The pods of every stage that `stages` does not name; what stands below `stages.<stage>` has the same keys."""

    nodes: Annotated[Count, Field(le=10_000)] = Field(1, description="pods that train together, one per node (warmup and dpo)")


class ServingConfig(PodConfig):
    """The vLLM deployment that answers during search and evaluation (policy.backend vllm)."""

    image: str | None = Field(None, description="vLLM's image, by digest; null: the image of target vllm-cpu")
    device: Literal["cuda", "cpu"] | None = Field(
        None, description="what the image's vLLM is built for; null: cpu for target vllm-cpu and with gpus 0, else cuda"
    )
    replicas: Annotated[Count, Field(le=10_000)] = Field(1, description="vLLM pods; all shards of `generate` share them")
    gpu_sharing: Literal["exclusive", "timeshare"] = Field(
        "exclusive", description="timeshare: serving is scaled to 0 while a stage needs the GPU"
    )
    arguments: list[str] = Field(default_factory=list, description="extra arguments of the vLLM server")
    kv_cache_gib: Count = Field(1, description="CPU build: GiB of KV cache")
    startup_seconds: Rate = Field(900.0, description="how long a pod may take to serve before the run fails with exit code 69")

    @property
    def runs_on_cpu(self) -> bool:
        """Whether the image holds vLLM's CPU build, which wants other flags and computes adapters in float32 too."""
        return self.device == "cpu" if self.device else self.image is None or self.gpus == 0

    @property
    def pod_gpus(self) -> int:
        """GPUs of one vLLM pod: what `gpus` says, else one unless the image holds the CPU build."""
        return int(not self.runs_on_cpu) if self.gpus is None else self.gpus


class KubernetesConfig(Section):
    """Stages as Jobs. Credentials come from a Secret or from workload identity, never from here."""

    namespace: DnsLabel | None = Field(None, description="null: the controller's own namespace, or the kubeconfig's")
    image_repository: str = Field("localhost/itool", description="images are <image_repository>/<target>:<image_tag>")
    image_tag: str = Field("dev", description="tag of all images that `images` does not name")
    images: dict[Target, str] = Field(default_factory=dict, description="whole image references by target, best by digest")
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = Field("IfNotPresent", description="when nodes pull an image")
    image_pull_secrets: list[DnsName] = Field(default_factory=list, description="Secrets with registry credentials")
    store_endpoint_url: Url | None = Field(None, description="the S3 endpoint as pods reach it; null: store.endpoint_url")
    credentials_secret: DnsName | None = Field(
        None, description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; null: workload identity"
    )
    job_service_account: DnsName = Field("default", description="service account of stage pods (no token is mounted)")
    serving_service_account: DnsName = Field("default", description="service account of vLLM pods (no token is mounted)")
    gpu_resource: str = Field("nvidia.com/gpu", description="name of the resource that `gpus` counts")
    queue: DnsName | None = Field(None, description="Kueue local queue of the stage Jobs")
    labels: Labels = Field(default_factory=dict, description="extra labels of everything that is created")
    annotations: Annotations = Field(default_factory=dict, description="extra annotations of stage and serving pods")
    backoff_limit: CountOrZero = Field(6, description="retries of a stage's pod; of each shard's pod for `generate`")
    parallel_shards: Count = Field(100, description="shards of `generate` that run at the same time")
    pending_seconds: Rate = Field(1800.0, description="a pod that cannot start for so long fails the run (not while Kueue queues its Job)")
    grace_seconds: Count = Field(120, description="time between SIGTERM and SIGKILL: a checkpoint must be stored within it")
    keep_seconds: Count = Field(86400, description="how long a finished Job stays after its logs were kept in the store")
    pods: StagePodConfig = Field(default_factory=StagePodConfig, description="the pods of every stage that `stages` does not name")
    stages: dict[StageName, StagePodConfig] = Field(
        default_factory=dict, description="pods by stage, with the keys of `pods`; a stage named here takes nothing from `pods`"
    )
    serving: ServingConfig = Field(default_factory=ServingConfig)

    @model_validator(mode="after")
    def _only_training_spans_nodes(self) -> KubernetesConfig:
        for name, pod in [("pods", self.pods), *self.stages.items()]:
            if pod.nodes > 1 and name not in TRAINING_STAGES:
                raise ValueError(f"{name}: nodes = {pod.nodes}: only stages.warmup and stages.dpo can span nodes")
        return self

    def pod(self, stage: StageName) -> StagePodConfig:
        """The pod settings of a stage."""
        return self.stages.get(stage, self.pods)
