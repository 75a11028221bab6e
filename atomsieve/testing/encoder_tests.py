"""All checks of an encoder as tests that pytest collects from a subclass."""

from __future__ import annotations

from typing import Any, ClassVar
from unittest import SkipTest

from atomsieve.models.encoder import find_encoder_class
from atomsieve.models.ensemble import Ensemble
from atomsieve.testing.encoders import (
    build_untrained,
    check_awkward_cells,
    check_batch_independence,
    check_charge_and_spin,
    check_configuration,
    check_double_backward,
    check_export,
    check_forces,
    check_lone_atoms,
    check_members,
    check_precisions,
    check_smooth_cutoff,
    check_symmetries,
    check_traced_export,
    check_virial,
)


class EncoderTests:
    """All checks of an encoder as tests that pytest collects from a subclass.

    Attributes
    ----------
    encoder : its name in configurations.
    config : further keys of `ModelConfig` for all tests, options of the encoder included.
    invariant : it claims that energies do not change by rotation and reflection.
    formats : formats of exports that are checked.
    """

    encoder: ClassVar[str]
    config: ClassVar[dict[str, Any]] = {}
    invariant: ClassVar[bool] = True
    formats: ClassVar[tuple[str, ...]] = ("onnx", "torchscript")

    def make_ensemble(self, **config: Any) -> Ensemble:
        """Return an untrained ensemble of two members in FP64."""
        return build_untrained(self.encoder, **{**self.config, **config})

    def require_conservative(self) -> None:
        """Skip a test that is about conservative forces, if the encoder has none."""
        kinds = find_encoder_class(self.encoder).force_kinds
        if self.config.get("forces", kinds[0]) != "conservative":
            raise SkipTest("forces are direct")

    def test_symmetries(self) -> None:
        if not self.invariant:
            raise SkipTest("the encoder claims no invariance")
        check_symmetries(self.make_ensemble())

    def test_forces_are_the_gradient_of_the_energy(self) -> None:
        self.require_conservative()
        check_forces(self.make_ensemble())

    def test_forces_on_a_truncated_list_are_the_gradient_of_the_energy(self) -> None:
        self.require_conservative()
        check_forces(self.make_ensemble(max_neighbors=7))

    def test_virial_is_the_derivative_by_strain(self) -> None:
        self.require_conservative()
        check_virial(self.make_ensemble())

    def test_nothing_jumps_at_the_cutoff(self) -> None:
        check_smooth_cutoff(self.make_ensemble())

    def test_results_do_not_depend_on_the_batch(self) -> None:
        check_batch_independence(self.make_ensemble())

    def test_stacked_members_equal_members_alone(self) -> None:
        check_members(self.make_ensemble())

    def test_lone_atoms(self) -> None:
        check_lone_atoms(self.make_ensemble())

    def test_awkward_cells(self) -> None:
        check_awkward_cells(self.make_ensemble())

    def test_losses_on_forces_have_the_right_gradient(self) -> None:
        check_double_backward(self.make_ensemble())

    def test_lower_precisions_are_near(self) -> None:
        check_precisions(self.make_ensemble())

    def test_configuration_and_memory(self) -> None:
        check_configuration(self.make_ensemble())

    def test_charge_and_spin_act(self) -> None:
        check_charge_and_spin(self.make_ensemble(charge_spin=True))

    def test_traced_export(self) -> None:
        for config in ({}, {"max_neighbors": 7}):
            ensemble = self.make_ensemble(**config)
            if not ensemble.encoder.exportable:
                raise SkipTest("the encoder states that it cannot be exported")
            check_traced_export(ensemble)

    def test_exported_files(self) -> None:
        for name in self.formats:
            check_export(self.make_ensemble(layers=1), name)
