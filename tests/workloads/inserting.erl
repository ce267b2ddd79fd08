%% SPDX-License-Identifier: Apache-2.0
%% Inserts into ETS tables and sends tagged messages, as often as a command says.
%%
%%   inserts N     N calls of ets:insert/2 into the table planted_table, N into one without a name
%%   calls N       N messages {planted_call, N} and N messages planted_cast from main to a sink
%%   who           answers "who MAIN SINK", two pids
-module(inserting).
-export([start/0, main/0, sink/0]).

start() ->
    spawn(?MODULE, main, []).

main() ->
    planted_table = ets:new(planted_table, [named_table]),
    Anonymous = ets:new(planted_anonymous, []),
    register(planted_sink, Sink = spawn(?MODULE, sink, [])),
    register(planted_main, self()),
    control:serve(fun(_) -> run(["inserts", "3"], Anonymous, Sink) end,
                  fun(_, Words) -> run(Words, Anonymous, Sink) end).

run(["inserts", Text], Anonymous, _Sink) ->
    N = list_to_integer(Text),
    [true = ets:insert(Table, {I, x}) || Table <- [planted_table, Anonymous], I <- lists:seq(1, N)],
    ["done inserts ", Text];
run(["calls", Text], _Anonymous, Sink) ->
    N = list_to_integer(Text),
    [begin Sink ! {planted_call, I}, Sink ! planted_cast end || I <- lists:seq(1, N)],
    ["done calls ", Text];
run(["who"], _Anonymous, Sink) ->
    ["who ", pid_to_list(self()), " ", pid_to_list(Sink)].

sink() ->
    receive _ -> sink() end.
