"""What nvidia-smi tells of a GPU is read whatever its driver calls it; what it does not tell is unknown, never fine."""

import json

import pytest

from nsa_lib.runs import environment, gpu_health
from nsa_lib.runs.gpu_health import parsed, read_health, recorded, recorded_health

NEW = """<?xml version="1.0" ?>
<nvidia_smi_log><driver_version>580.1</driver_version><gpu id="00000000:19:00.0">
<ecc_mode><current_ecc>Enabled</current_ecc></ecc_mode>
<clocks_event_reasons>
  <clocks_event_reason_sw_power_cap>Active</clocks_event_reason_sw_power_cap>
  <clocks_event_reason_hw_slowdown>Not Active</clocks_event_reason_hw_slowdown>
  <clocks_event_reason_hw_thermal_slowdown>Active</clocks_event_reason_hw_thermal_slowdown>
</clocks_event_reasons>
<clocks_event_reasons_counters>
  <clocks_event_reasons_counters_sw_power_cap>91403239 us</clocks_event_reasons_counters_sw_power_cap>
  <clocks_event_reasons_counters_hw_therm_slowdown>1500 us</clocks_event_reasons_counters_hw_therm_slowdown>
</clocks_event_reasons_counters>
<ecc_errors><volatile><sram_correctable>9</sram_correctable>
  <sram_uncorrectable_parity>1</sram_uncorrectable_parity><dram_uncorrectable>2</dram_uncorrectable></volatile></ecc_errors>
<retired_pages><double_bit_retirement><retired_count>N/A</retired_count></double_bit_retirement>
  <pending_retirement>N/A</pending_retirement></retired_pages>
<remapped_rows><remapped_row_corr>0</remapped_row_corr><remapped_row_unc>1</remapped_row_unc>
  <remapped_row_pending>Yes</remapped_row_pending><remapped_row_failure>No</remapped_row_failure></remapped_rows>
<temperature><gpu_temp>41 C</gpu_temp></temperature>
<gpu_power_readings><current_power_limit>700.00 W</current_power_limit></gpu_power_readings>
<clocks><sm_clock>345 MHz</sm_clock></clocks><max_clocks><sm_clock>1980 MHz</sm_clock></max_clocks>
</gpu></nvidia_smi_log>"""

OLD = (
    NEW.replace("event_reason", "throttle_reason")
    .replace("gpu_power_readings", "power_readings")
    .replace("current_power_limit", "power_limit")
)
"""As drivers before 535 call the same."""


@pytest.mark.parametrize("text", [NEW, OLD], ids=["new", "old"])
def test_clocks_throttling_and_ecc_errors_are_read(text):
    found = parsed(text)
    assert (found["sm_clock_mhz"], found["max_sm_clock_mhz"], found["power_limit_w"]) == (345.0, 1980.0, 700.0)
    assert found["slowdowns"] == ["hw_thermal_slowdown"], "a power cap is everyday"
    assert found["ecc_uncorrectable"] == 3.0
    assert (found["remapped_rows"], found["remap_pending"], found["remap_failure"]) == (1.0, True, False)


def test_time_spent_throttled_is_read_in_microseconds():
    assert parsed(NEW)["slowdown_us"]["hw_therm_slowdown"] == 1500.0


def test_what_a_driver_does_not_tell_is_unknown():
    found = parsed("<nvidia_smi_log><gpu/></nvidia_smi_log>")
    assert set(map(str, found.values())) == {"None", str(dict.fromkeys(gpu_health.COUNTED))}
    assert parsed(NEW)["retired_pages"] is None
    assert parsed(NEW)["retirement_pending"] is None


@pytest.mark.parametrize("text", ["", "<torn", "<nvidia_smi_log/>", "No devices were found"])
def test_a_text_that_tells_of_no_gpu_gives_nothing(text):
    assert parsed(text) is None


def test_the_gpu_is_asked_for_by_its_uuid(monkeypatch):
    asked = []
    monkeypatch.setattr(environment, "answer", lambda *command: asked.append(command) or NEW.splitlines())
    assert read_health("abc")["power_limit_w"] == 700.0
    assert asked[0][-1] == "--id=GPU-abc"


def test_start_and_end_are_recorded_and_of_a_run_that_is_killed_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_health, "read_health", lambda uuid: {"sm_clock_mhz": 345.0})
    with recorded(tmp_path, "abc"):
        assert recorded_health(tmp_path) == {"schema": 1, "start": {"sm_clock_mhz": 345.0}, "end": None}
    assert recorded_health(tmp_path)["end"] == {"sm_clock_mhz": 345.0}


def test_without_a_gpu_nothing_is_recorded(tmp_path):
    with recorded(tmp_path, None):
        pass
    assert recorded_health(tmp_path) is None
    (tmp_path / gpu_health.FILE).write_text("{torn")
    assert recorded_health(tmp_path) is None
    (tmp_path / gpu_health.FILE).write_text(json.dumps({"start": None}))
    assert recorded_health(tmp_path) == {"start": None}
