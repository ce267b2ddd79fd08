%% SPDX-License-Identifier: Apache-2.0
%% Calls target/2 by every kind of call, as often as a command says; target/2 counts itself.
-module(called).
-export([start/0, target/2, loop/1, nest/1, nap/1, fail/1, tail/1, shapes/9, called/0]).

-record(state, {server}).

start() ->
    persistent_term:put(called, counters:new(1, [])),
    {ok, Server} = called_server:start_link(),
    control:serve(fun(_) -> ok end, fun(_, Words) -> command(Words, #state{server = Server}) end).

command([Name, Count], State) ->
    Before = called(),
    ok = plant(list_to_atom(Name), list_to_integer(Count), State),
    io_lib:format("done ~s ~b", [Name, called() - Before]).

%% How often target/2 and its kin have run.
called() -> counters:get(persistent_term:get(called), 1).

count() -> counters:add(persistent_term:get(called), 1, 1).

target(Way, Number) ->
    count(),
    {Way, Number}.

plant(local, N, _) -> each(fun(I) -> {local, I} = target(local, I) end, N);
plant(external, N, _) -> each(fun(I) -> {external, I} = ?MODULE:target(external, I) end, N);
plant(tail, N, _) -> each(fun(I) -> {tail, I} = tail(I) end, N);
plant(apply, N, _) ->
    [Module, Function] = [list_to_atom(L) || L <- ["called", "target"]],
    each(fun(I) -> {apply, I} = apply(Module, Function, [apply, I]) end, N);
plant(dynamic, N, _) ->
    Module = list_to_atom("called"),
    each(fun(I) -> {dynamic, I} = Module:target(dynamic, I) end, N);
plant('fun', N, _) ->
    Fun = fun ?MODULE:target/2,
    each(fun(I) -> {'fun', I} = Fun('fun', I) end, N);
plant(lambda, N, _) ->
    Fun = fun target/2,
    each(fun(I) -> {lambda, I} = Fun(lambda, I) end, N);
plant(spawn, N, _) ->
    each(fun(I) ->
        {_, Monitor} = spawn_monitor(?MODULE, target, [spawn, I]),
        receive {'DOWN', Monitor, _, _, _} -> ok end
    end, N);
plant(loop, N, _) -> loop(N);
plant(nest, N, _) -> nest(N);
plant(nap, N, _) -> each(fun(_) -> nap(2) end, N);
plant(fail, N, _) -> each(fun(I) -> try fail(I) catch error:planted -> ok end end, N);
plant(server, N, #state{server = Server}) ->
    each(fun(I) -> I = gen_server:call(Server, {add, I}) end, N);
plant(reload, N, _) ->
    each(fun(_) ->
        code:purge(called_server),
        {module, _} = code:load_file(called_server),
        counters:add(persistent_term:get(called), 1, 1)
    end, N);
plant(traced, N, _) ->
    %% The VM's own tracing counts, at its own breakpoint in the same function.
    Function = {lists, droplast, 1},
    1 = erlang:trace_pattern(Function, true, [call_count]),
    each(fun(_) -> [1] = lists:droplast([1, 2]) end, N),
    {call_count, Calls} = erlang:trace_info(Function, call_count),
    erlang:trace_pattern(Function, false, [call_count]),
    counters:add(persistent_term:get(called), 1, Calls);
plant(native, N, _) -> each(fun(_) -> {ok, _} = prim_file:read_file_info("/"), count() end, N);
plant(shapes, N, _) ->
    Big = maps:from_list([{I, I} || I <- lists:seq(1, 40)]),
    each(fun(I) ->
        ?MODULE:shapes(ok, I, {add, {1, "a"}, self()}, [{key, I}, b], #{name => I, on => true},
                       Big, <<"twenty-three bytes long">>, 1.5, fun() -> I end)
    end, N).

each(_, 0) -> ok;
each(Fun, N) ->
    Fun(N),
    each(Fun, N - 1).

%% The last thing it does is the call: it returns to the caller of this.
tail(I) -> target(tail, I).

%% Calls itself last: N + 1 calls; a process that does this is preempted at its entry.
loop(0) -> count();
loop(N) -> count(), loop(N - 1).

%% Calls itself in between: N + 1 calls, the stack as deep.
nest(0) -> count();
nest(N) -> count(), ok = nest(N - 1), ok.

nap(Milliseconds) ->
    count(),
    timer:sleep(Milliseconds),
    ok.

fail(_) -> count(), error(planted).

shapes(_, _, _, _, _, _, _, _, _) -> count(), ok.
