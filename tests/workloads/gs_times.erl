%% SPDX-License-Identifier: Apache-2.0
%% What planted servers and their callers count and time themselves, by module. Durations are sorted
%% into bins that are 1 % wide.
-module(gs_times).
-export([new/0, now/0, count/2, time/3, taken/2, served/2, busy/2, call/2, read/1, text/1]).

-define(BINS, 2000).
-define(NAMES, [gs_slow, gs_chain, gs_backend, gs_state, gs_defer, gs_late, gs_crash, gs_cast,
    gs_info, gs_fast, gs_mixed, gs_pass, gs_swarm, gs_long]).
-define(COUNTS, [answered, timeout, down, noproc, casts, infos, abandoned]).
-define(KINDS, [queue, service, call]).

new() ->
    Made = [{{Module, Kind}, counters:new(?BINS + 2, [])} || Module <- ?NAMES, Kind <- ?KINDS],
    Counts = [{Module, counters:new(length(?COUNTS), [])} || Module <- ?NAMES],
    persistent_term:put(?MODULE, maps:from_list(Made ++ Counts)).

now() -> os:perf_counter(microsecond).

count(Module, What) ->
    counters:add(maps:get(Module, persistent_term:get(?MODULE)), place(What, ?COUNTS), 1).

place(What, [What | _]) -> 1;
place(What, [_ | Rest]) -> 1 + place(What, Rest).

%% Bin 1 is the sum, bin 2 all below 1 us.
time(Module, Kind, Us) ->
    Bins = maps:get({Module, Kind}, persistent_term:get(?MODULE)),
    counters:add(Bins, 1, Us),
    counters:add(Bins, 2 + min(?BINS - 1, trunc(100 * math:log(max(1, Us)))), 1).

%% A server takes a message that was sent at a time; returns the time.
taken(Module, Sent) ->
    Now = ?MODULE:now(),
    Sent =:= unknown orelse time(Module, queue, Now - Sent),
    Now.

served(Module, Taken) -> time(Module, service, ?MODULE:now() - Taken).

busy(Module, Work) ->
    T0 = ?MODULE:now(),
    Result = Work(),
    time(Module, service, ?MODULE:now() - T0),
    Result.

call(Module, Call) ->
    T0 = ?MODULE:now(),
    Result = Call(),
    count(Module, answered),
    time(Module, call, ?MODULE:now() - T0),
    Result.

%% Microseconds in callbacks, callbacks, and microseconds that callers waited.
read(Module) ->
    {Busy, Number} = sum(Module, service),
    {Waited, _} = sum(Module, call),
    [Busy, Number, Waited].

sum(Module, Kind) ->
    [Sum | Bins] = bins(Module, Kind),
    {Sum, lists:sum(Bins)}.

bins(Module, Kind) ->
    Bins = maps:get({Module, Kind}, persistent_term:get(?MODULE)),
    [counters:get(Bins, Index) || Index <- lists:seq(1, ?BINS + 1)].

text(Modules) -> [[counts(Module), [times(Module, Kind) || Kind <- ?KINDS]] || Module <- Modules].

counts(Module) ->
    Counts = maps:get(Module, persistent_term:get(?MODULE)),
    [io_lib:format(" ~s:~s=~b", [Module, What, counters:get(Counts, place(What, ?COUNTS))])
        || What <- ?COUNTS].

times(Module, Kind) ->
    [Sum | Bins] = bins(Module, Kind),
    Number = lists:sum(Bins),
    io_lib:format(" ~s:~s_count=~b ~s:~s_mean=~b", [Module, Kind, Number, Module, Kind,
        Sum div max(1, Number)]) ++
        [io_lib:format(" ~s:~s_p~b=~b", [Module, Kind, P, quantile(Bins, P * Number / 100)])
            || P <- [47, 50, 53, 87, 90, 93, 99], Number > 0].

quantile(Bins, Wanted) -> quantile(Bins, Wanted, 0).

quantile([Bin | _], Wanted, Index) when Bin >= Wanted -> round(math:exp((Index + 0.5) / 100));
quantile([Bin | Rest], Wanted, Index) -> quantile(Rest, Wanted - Bin, Index + 1).
